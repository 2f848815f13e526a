import copy

import pytest

from mtron_train import ConfigError, config_from_mapping, load_config

LEGAL = {
    "run": {"directory": "runs/x", "steps": 100},
    "model": {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    },
    "data": {"train": "corpus/train", "seq_len": 16, "global_batch_size": 8},
    "optim": {"lr": 1e-3},
    "schedule": {"kind": "cosine", "warmup_steps": 10},
}

TOML = """
[run]
directory = "runs/x"
steps = 100
[model]
model_type = "llama"
vocab_size = 64
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 2
num_attention_heads = 2
max_position_embeddings = 32
[data]
train = "corpus/train"
seq_len = 16
global_batch_size = 8
[optim]
lr = 1e-3
[schedule]
kind = "cosine"
warmup_steps = 10
"""


def changed(**changes):
    """LEGAL with values replaced (`run__steps=5`) or removed (`run__steps=None`)."""
    data = copy.deepcopy(LEGAL)
    for path, value in changes.items():
        section, _, field = path.partition("__")
        if value is None:
            del data[section][field]
        else:
            data[section][field] = value
    return data


def violations(**changes):
    with pytest.raises(ConfigError) as caught:
        config_from_mapping(changed(**changes))
    return caught.value.violations


def test_defaults_are_filled_and_the_schedule_knows_its_length():
    config = config_from_mapping(LEGAL)
    assert config.schedule.total_steps == 100
    assert config.num_microbatches == 1
    assert config.checkpoint.keep_last == 2


def test_round_trip_through_json_is_the_same_configuration():
    config = config_from_mapping(changed(data__micro_batch_size=2))
    assert config_from_mapping(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run__stepz": 5}, "run.stepz: there is no such key; did you mean steps?"),
        ({"data__batch": 5}, "data.batch: there is no such key"),
        ({"optim__learning": 1e-3}, "optim.learning: there is no such key"),
        ({"run__steps": None}, "run.steps: is missing"),
        ({"run__steps": "many"}, 'run.steps: input should be a valid integer, got "many"'),
        ({"run__steps": 0}, "run.steps: input should be greater than 0, got 0"),
        ({"run__steps": True}, "run.steps: input should be a valid integer, got True"),
        ({"run__dtype": "int8"}, "run.dtype: input should be 'float32' or 'float64', got \"int8\""),
        ({"optim__lr": "1e-3"}, 'optim.lr: input should be a valid number, got "1e-3"'),
        ({"optim__kind": "adam"}, "optim.kind: input should be 'adamw' or 'muon', got \"adam\""),
        (
            {"data__micro_batch_size": 3},
            "data.micro_batch_size: 3 does not divide data.global_batch_size = 8; use 1, 2, 4 or 8",
        ),
        (
            {"data__seq_len": 64},
            "data.seq_len: 64 is more than model.max_position_embeddings = 32; "
            "use at most 32, or raise that",
        ),
        ({"schedule__warmup_steps": 200}, "schedule.warmup_steps: "),
    ],
)
def test_a_violation_names_the_key_and_the_remedy(changes, message):
    (found,) = violations(**changes)
    assert found.startswith(message)


def test_a_misspelt_model_key_is_suggested():
    (found,) = violations(model__hidden_sizes=16)
    assert "hidden_sizes" in found
    assert "hidden_size" in found.replace("hidden_sizes", "")


def test_all_violations_are_reported_at_once():
    found = violations(
        run__steps="many", model__num_attention_heads=3, data__seq_len=-1, optim__typo=1
    )
    assert len(found) == 4
    for key in ("run.steps", "model.", "data.seq_len", "optim.typo"):
        assert any(line.startswith(key) for line in found), key


def test_a_missing_model_section_is_one_violation():
    data = copy.deepcopy(LEGAL)
    del data["model"]
    with pytest.raises(ConfigError, match=r"model: the section is missing"):
        config_from_mapping(data)


def test_a_file_and_overrides_are_merged_before_the_validation(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    config = load_config(
        path, ["optim.lr=2e-3", "run.directory=runs/y", "log.tensorboard=false", "run.steps=200"]
    )
    assert config.optim.lr == 2e-3
    assert config.run.directory == "runs/y"
    assert config.log.tensorboard is False
    assert config.schedule.total_steps == 200


def test_a_string_is_no_number(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    with pytest.raises(ConfigError, match=r'run.steps: input should be a valid integer, got "a"'):
        load_config(path, ["run.steps=a"])


@pytest.mark.parametrize("override", ["optim.lr", "=3", "optim.=3", "run.steps.x=3"])
def test_a_malformed_override_is_named(tmp_path, override):
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    with pytest.raises(ConfigError, match=r"override|no section"):
        load_config(path, [override])


def test_an_unreadable_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none.toml: 1 error.*\n.*No such file"):
        load_config(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[run\n")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(broken)


@pytest.mark.parametrize(
    ("parallel", "world_size", "changes", "message"),
    [
        (
            {"tp": 2},
            1,
            {},
            "parallel.tp: 2 is more than the world size 1; use 1, or start 2 ranks (--nproc)",
        ),
        (
            {"tp": 4},
            4,
            {},
            "parallel.tp: 4 is more than num_attention_heads = 2; use 1 or 2",
        ),
        (
            {},
            3,
            {},
            "data.global_batch_size: 8 samples cannot be shared by 3 data-parallel ranks; use 6 or "
            "9, or 1, 2, 4 or 8 such ranks",
        ),
        (
            {"dp": 2},
            2,
            {"data__micro_batch_size": 3},
            "data.micro_batch_size: 3 does not divide data.global_batch_size = 8 / 2 data-parallel "
            "ranks = 4; use 1, 2 or 4",
        ),
        (
            {"tp": 2, "zero": 1},
            4,
            {"optim__kind": "muon"},
            'optim.kind: "muon" needs whole matrices, but parallel.tp and parallel.zero divide '
            'them; use "adamw", or parallel.tp = 1 with parallel.zero = 0',
        ),
        (
            {"zerro": 1},
            2,
            {},
            "parallel.zerro: there is no such key; did you mean zero?",
        ),
    ],
)
def test_a_layout_that_cannot_be_is_refused(parallel, world_size, changes, message):
    with pytest.raises(ConfigError) as caught:
        config_from_mapping({**changed(**changes), "parallel": parallel}, world_size=world_size)
    assert message in caught.value.violations


def test_the_layout_is_filled_in():
    data = {**LEGAL, "parallel": {"tp": 2, "zero": 1}}
    config = config_from_mapping(data, world_size=8)
    assert config.parallel.dp == 4
    assert (config.micro_batch_size, config.num_microbatches) == (2, 1)
    data["data"] = {**data["data"], "micro_batch_size": 1}
    assert config_from_mapping(data, world_size=8).num_microbatches == 2


def test_muon_may_share_a_batch():
    data = {**changed(optim__kind="muon"), "parallel": {"zero": 0}}
    assert config_from_mapping(data, world_size=2).parallel.dp == 2
