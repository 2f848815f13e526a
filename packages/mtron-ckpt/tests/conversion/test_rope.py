import pytest

from mtron_ckpt.conversion.rope import Rope, RopeByLayerType

NONE = {
    "original_max_position_embeddings": None,
    "low_freq_factor": None,
    "high_freq_factor": None,
    "beta_fast": None,
    "beta_slow": None,
    "attention_factor": None,
    "mscale": None,
    "mscale_all_dim": None,
    "truncate": True,
}
SCALINGS = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0, "original_max_position_embeddings": 64},
    "yarn": {
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 30.0,
        "attention_factor": 1.5,
        "mscale": 0.7,
        "truncate": False,
    },
    "llama3": {
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_the_three_forms_of_a_scaling_are_read(kind):
    values = SCALINGS[kind]
    ours = {"rope_theta": 500.0, "rope_scaling": {"rope_type": kind} | NONE | values}
    oldest = {"rope_theta": 500.0, "rope_scaling": {"type": kind} | values}
    old = {"rope_theta": 500, "rope_scaling": {"rope_type": kind, "type": kind} | values}
    new = {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0} | values}
    for config in (oldest, old, new, new | old):
        assert Rope().from_hf(config) == ours


@pytest.mark.parametrize("kind", [None, *SCALINGS])
@pytest.mark.parametrize("partial", [False, True])
def test_ours_survives_the_round_trip(kind, partial):
    scaling = None if kind is None else {"rope_type": kind} | NONE | SCALINGS[kind]
    ours = {"rope_theta": 700.0, "rope_scaling": scaling}
    ours |= {"partial_rotary_factor": 0.25} if partial else {}
    rope = Rope(partial=partial)
    hf = rope.to_hf(ours)
    assert rope.from_hf(hf) == ours
    assert rope.from_hf({"rope_parameters": hf["rope_parameters"]}) == ours
    assert rope.from_hf({k: v for k, v in hf.items() if k != "rope_parameters"}) == ours
    assert set(hf) <= set(rope.theirs)
    assert set(ours) == set(rope.ours)
    assert hf["rope_parameters"].get("rope_type") == (kind or "default")


def test_nothing_said_means_the_defaults():
    for config in ({}, {"rope_scaling": None, "rope_parameters": None}, {"rope_scaling": {}}):
        assert Rope(5e5).from_hf(config) == {"rope_theta": 5e5, "rope_scaling": None}
    assert Rope(partial=True, default_partial=0.5).from_hf({})["partial_rotary_factor"] == 0.5
    plain = {"rope_type": "default", "partial_rotary_factor": 1.0}
    assert Rope().from_hf({"rope_parameters": plain})["rope_scaling"] is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_theta": 0}, "rope_theta: must be a positive finite number"),
        ({"rope_scaling": "yarn"}, "rope_scaling: must be a table"),
        ({"rope_scaling": {"type": "longrope"}}, r"rope_scaling\.rope_type: only default, linear"),
        ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor: must be"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2, "beta_fast": 3}},
            r"rope_parameters\.beta_fast: has no effect with rope_type 'linear'",
        ),
        ({"rope_parameters": {"factor": 2.0}}, r"rope_parameters\.rope_type: only"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            r"rope_parameters\.rope_type: only",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2, "truncate": 1}},
            r"rope_scaling\.truncate: must be true or false",
        ),
        (
            {"rope_theta": 9.0, "rope_parameters": {"rope_theta": 8.0}},
            r"rope_theta: contradicts itself.*rope_parameters\.rope_theta",
        ),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2},
                "rope_parameters": {"rope_type": "linear", "factor": 3},
            },
            "rope_scaling: contradicts rope_parameters",
        ),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor: only 1\.0 can be honoured"),
        (
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            r"rope_parameters\.partial_rotary_factor: only",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message):
        Rope().from_hf(config)


BY_TYPE = RopeByLayerType()
LINEAR = {"rope_type": "linear", "factor": 8.0}


def test_both_forms_by_layer_type_are_read():
    ours = {
        "rope_theta": 2e6,
        "rope_scaling": {**NONE, **LINEAR},
        "rope_local_base_freq": 300.0,
    }
    old = {"rope_theta": 2e6, "rope_local_base_freq": 300.0, "rope_scaling": LINEAR}
    new = {
        "rope_parameters": {
            "full_attention": {"rope_theta": 2e6, **LINEAR},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        }
    }
    for config in (old, new, old | new, BY_TYPE.to_hf(ours)):
        assert BY_TYPE.from_hf(config) == ours
    assert set(BY_TYPE.to_hf(ours)) <= set(BY_TYPE.theirs)
    assert BY_TYPE.from_hf({}) == {
        "rope_theta": 1e6,
        "rope_scaling": None,
        "rope_local_base_freq": 1e4,
    }


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sliding_attention": LINEAR}, r"rope_parameters\.sliding_attention: only the default"),
        ({"rope_theta": 5.0}, "rope_parameters: must hold a table for full_attention"),
        ({"full_attention": {"rope_type": "su"}}, "rope_type: only"),
    ],
)
def test_what_cannot_be_honoured_by_layer_type_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        BY_TYPE.from_hf({"rope_parameters": parameters})
