import pytest
from pydantic import ValidationError

from mtron_parallel.config import ParallelConfig


def test_defaults():
    config = ParallelConfig()
    assert (config.tp, config.dp, config.zero) == (1, -1, 0)
    assert (config.sequence_parallel, config.overlap) == (False, True)
    assert config.bucket_bytes == 64 * 2**20
    assert config.timeout_seconds == 600


def test_fields_are_frozen_and_documented():
    with pytest.raises(ValidationError, match="frozen"):
        ParallelConfig().tp = 2
    properties = ParallelConfig.model_json_schema()["properties"]
    assert all(field.get("description") for field in properties.values())
    assert properties["zero"]["enum"] == [0, 1, 2]


def test_resolve_fills_in_dp():
    config = ParallelConfig(tp=2, zero=2)
    assert config.resolve(8) == ParallelConfig(tp=2, dp=4, zero=2)
    assert config.resolve(2).dp == 1
    assert ParallelConfig(tp=2, dp=3).resolve(6) == ParallelConfig(tp=2, dp=3)


def test_resolve_refuses_what_check_finds():
    config = ParallelConfig(tp=4)
    with pytest.raises(ValueError, match="does not divide the world size 6") as caught:
        config.resolve(6)
    assert str(caught.value).splitlines() == config.check(6)


@pytest.mark.parametrize("world_size", [0, -1])
def test_a_job_has_ranks(world_size):
    with pytest.raises(ValueError, match=f"world_size: must be at least 1, got {world_size}"):
        ParallelConfig().check(world_size)


@pytest.mark.parametrize(
    ("fields", "world_size"),
    [
        ({}, 1),
        ({}, 7),
        ({"tp": 4, "dp": 2}, 8),
        ({"zero": 1, "dp": 1}, 1),
        ({"zero": 2, "dp": 1}, 1),
        ({"tp": 2, "zero": 2}, 2),
        ({"sequence_parallel": True}, 2),
        ({"timeout_seconds": 5}, 1),
    ],
)
def test_what_has_no_effect_is_legal(fields, world_size):
    assert ParallelConfig(**fields).check(world_size) == []
