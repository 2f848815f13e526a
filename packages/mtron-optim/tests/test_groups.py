from mtron_optim import MuonConfig, OptimConfig
from mtron_optim.groups import Treatment, plan_groups, treatment_of

PARAMETERS = [
    ("embed.weight", 2),
    ("layers.0.norm.weight", 1),
    ("layers.0.mlp.up.weight", 2),
    ("layers.0.mlp.up.bias", 1),
    ("layers.0.experts.weight", 3),
    ("head.weight", 2),
]


def test_adamw_decays_matrices_only():
    plan = plan_groups(PARAMETERS, OptimConfig(lr=0.5, weight_decay=0.1))
    assert plan == {
        Treatment("adamw", 0.5, 0.1): [
            "embed.weight",
            "layers.0.mlp.up.weight",
            "layers.0.experts.weight",
            "head.weight",
        ],
        Treatment("adamw", 0.5, 0.0): ["layers.0.norm.weight", "layers.0.mlp.up.bias"],
    }


def test_muon_takes_hidden_matrices():
    config = OptimConfig(
        kind="muon",
        lr=0.1,
        weight_decay=0.01,
        embedding_lr=0.3,
        head_lr=0.05,
        muon=MuonConfig(lr=0.02, weight_decay=0.2),
    )
    treatments = {name: treatment_of(name, dims, config) for name, dims in PARAMETERS}
    assert treatments == {
        "embed.weight": Treatment("adamw", 0.3, 0.01),
        "layers.0.norm.weight": Treatment("adamw", 0.1, 0.0),
        "layers.0.mlp.up.weight": Treatment("muon", 0.02, 0.2),
        "layers.0.mlp.up.bias": Treatment("adamw", 0.1, 0.0),
        "layers.0.experts.weight": Treatment("adamw", 0.1, 0.01),
        "head.weight": Treatment("adamw", 0.05, 0.01),
    }


def test_patterns_are_data():
    config = OptimConfig(
        kind="muon",
        embedding_patterns=("tok*",),
        no_decay_patterns=("*.up.*",),
        muon=MuonConfig(exclude=("*.router.weight",)),
    )
    assert treatment_of("tok.weight", 2, config).algorithm == "adamw"
    assert treatment_of("embed.weight", 2, config).algorithm == "muon"
    assert treatment_of("layers.3.router.weight", 2, config).algorithm == "adamw"
    assert treatment_of("layers.3.up.weight", 2, config) == Treatment("muon", config.lr, 0.0)


def test_names_of_hugging_face_models_are_known():
    config = OptimConfig(kind="muon")
    for name in ("model.embed_tokens.weight", "transformer.wte.weight", "lm_head.weight"):
        assert treatment_of(name, 2, config).algorithm == "adamw", name
    assert treatment_of("model.layers.0.mlp.up_proj.weight", 2, config).algorithm == "muon"
