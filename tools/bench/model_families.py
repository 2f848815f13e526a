"""Forward and backward passes of every family: mtron's model beside that of transformers.

transformers makes the weights, mtron's converter reads them, and the losses must agree. Both run
in float32 without a compiler. mtron runs as plain modules, and with the faster matrix products that
`mtron_optim.accelerate` attaches, as in training; transformers with each of its attention
implementations that computes the same, of which the faster one counts.
"""

import copy
import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from in_turns import take_turns
from machine import Peak
from outcome import Check, Outcome
from ranks import times_as_fast
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import mtron_ckpt
from mtron_ckpt.torch_io import to_torch
from mtron_models import build, config_from_dict, flops_per_token, num_parameters
from mtron_optim import KernelConfig, accelerate

OURS, PLAIN_OURS = "mtron", "mtron, plain"
FORWARD, BOTH = "forward", "forward + backward"
LAYERS, HEADS, HEAD_DIM = 4, 6, 64
BATCH, SEQ_LEN, VOCABULARY = 4, 256, 4096


@dataclass(frozen=True)
class Family:
    """A family as transformers knows it.

    Attributes:
        name: of its classes, before `Config` and the task.
        fields: of its configuration.
        task: end of the model class's name.
        attentions: implementations that compute what the configuration says.
    """

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    task: str = "ForCausalLM"
    attentions: tuple[str, ...] = ("eager", "sdpa")

    @property
    def is_encoder_decoder(self) -> bool:
        return self.task == "ForConditionalGeneration"


PLAIN = {
    "hidden_size": HEADS * HEAD_DIM,
    "intermediate_size": 1024,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": SEQ_LEN,
    "tie_word_embeddings": False,
}
WINDOW = {"sliding_window": SEQ_LEN // 2}
GEMMA = {**PLAIN, **WINDOW, "query_pre_attn_scalar": HEAD_DIM}
EXPERTS = {"num_experts_per_tok": 2}
FAMILIES = {
    "llama": Family("Llama", PLAIN),
    "mistral": Family("Mistral", PLAIN | WINDOW),
    "qwen2": Family("Qwen2", {k: v for k, v in PLAIN.items() if k != "head_dim"}),
    "qwen3": Family("Qwen3", PLAIN),
    "gpt2": Family(
        "GPT2",
        {
            "n_embd": HEADS * HEAD_DIM,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": SEQ_LEN,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
            **dict.fromkeys(("bos_token_id", "eos_token_id"), 0),
        },
        task="LMHeadModel",
    ),
    "gemma2": Family("Gemma2", GEMMA, attentions=("eager",)),
    "gemma3_text": Family("Gemma3Text", GEMMA),
    "mixtral": Family(
        "Mixtral", PLAIN | EXPERTS | {"intermediate_size": 512, "num_local_experts": 8}
    ),
    "qwen3_moe": Family(
        "Qwen3Moe", PLAIN | EXPERTS | {"moe_intermediate_size": 512, "num_experts": 8}
    ),
    "deepseek_v3": Family(
        "DeepseekV3",
        {
            **{k: v for k, v in PLAIN.items() if k != "head_dim"},
            **EXPERTS,
            "num_key_value_heads": HEADS,
            "q_lora_rank": 192,
            "kv_lora_rank": 128,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32,
            "v_head_dim": 64,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 512,
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
        },
    ),
    "bert": Family(
        "Bert",
        {
            "hidden_size": HEADS * HEAD_DIM,
            "intermediate_size": 4 * HEADS * HEAD_DIM,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
        },
        task="ForMaskedLM",
    ),
    "t5": Family(
        "T5",
        {
            "d_model": HEADS * HEAD_DIM,
            "d_kv": HEAD_DIM,
            "d_ff": 1024,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "dropout_rate": 0.0,
        },
        task="ForConditionalGeneration",
    ),
}


@dataclass(frozen=True)
class Contender:
    """A model with its two passes, each of which returns the mean loss or nothing."""

    forward: Callable[[], None]
    both: Callable[[], float]


def run(names: Sequence[str], rounds: int, quick: bool, peak: Peak, console: Console) -> Outcome:
    """Measure the families and print a table."""
    outcome = Outcome()
    for name in names:
        outcome.rows += _measure(name, FAMILIES[name], rounds, quick)
        gc.collect()
    batch = outcome.rows[0]["batch"]
    console.print(
        f"\n[bold]families[/]: {batch} tokens, float32, tokens/s; x: mtron is so many times as "
        "fast as the faster one of transformers' attentions; plain: its modules as they are. % of "
        "best: the model's operations as a share of the best matrix products above."
    )
    console.print(_table(outcome.rows, peak))
    outcome.checks = _checks(outcome.rows)
    return outcome


def _measure(name: str, family: Family, rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Return a row for each of the two passes."""
    batch, seq_len = (1, 64) if quick else (BATCH, SEQ_LEN)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (batch, seq_len + 1), generator=generator)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    ours, theirs = _models(family)
    fast = copy.deepcopy(ours)
    accelerate(fast, KernelConfig(compile=False))
    contenders = {
        OURS: _ours(fast, family, inputs, labels),
        PLAIN_OURS: _ours(ours, family, inputs, labels),
    }
    for attention, model in theirs.items():
        contenders[attention] = _theirs(model, family, inputs, labels)
    losses = {key: contender.both() for key, contender in contenders.items()}
    config = ours.config
    flops = flops_per_token(config, seq_len)
    rows = []
    for kind, flops_of_pass in ((FORWARD, flops / 3), (BOTH, flops)):
        turns = {k: c.forward if kind == FORWARD else c.both for k, c in contenders.items()}
        rows.append(
            {
                "family": name,
                "pass": kind,
                "parameters": num_parameters(config),
                "batch": f"{batch} x {seq_len}",
                "tokens": batch * seq_len,
                "flops": flops_of_pass * batch * seq_len,
                "seconds": take_turns(turns, rounds),
                "losses": losses,
            }
        )
    return rows


def _models(family: Family) -> tuple[Any, dict[str, Any]]:
    """Return mtron's model, and that of transformers by its attention, with the same weights."""
    import transformers

    fields = {"vocab_size": VOCABULARY, "use_cache": False, "pad_token_id": 0} | family.fields
    transformers.utils.logging.disable_progress_bar()
    make_config = getattr(transformers, f"{family.name}Config")
    make_model = getattr(transformers, family.name.removesuffix("Text") + family.task)
    torch.manual_seed(0)
    theirs = {
        attention: make_model(make_config(**fields, attn_implementation=attention))
        for attention in family.attentions
    }
    first = theirs[family.attentions[0]]
    for model in theirs.values():
        model.load_state_dict(first.state_dict())
    with tempfile.TemporaryDirectory(prefix="mtron-bench-") as folder:
        directory = Path(folder)
        first.save_pretrained(directory / "hf")
        mtron_ckpt.convert(directory / "hf", directory / "mtron", to="mtron")
        return _load(directory / "mtron"), theirs


@torch.no_grad()
def _load(path: Path) -> nn.Module:
    checkpoint = mtron_ckpt.open(path)
    model = build(config_from_dict(checkpoint.config["model"]), device="cpu")
    for name, parameter in model.named_parameters():
        parameter.copy_(to_torch(checkpoint.read(f"param/{name}")))
    return model


def _ours(model: Any, family: Family, inputs: Tensor, labels: Tensor) -> Contender:
    weights = torch.full(labels.shape, 1 / labels.numel())
    arguments = (inputs, inputs) if family.is_encoder_decoder else (inputs,)
    return _contender(
        model, lambda: model(*arguments), lambda: model.train_loss(*arguments, labels, weights)
    )


def _theirs(model: Any, family: Family, inputs: Tensor, labels: Tensor) -> Contender:
    arguments = {"decoder_input_ids": inputs} if family.is_encoder_decoder else {}

    def logits() -> Tensor:
        return model(input_ids=inputs, **arguments).logits

    def loss() -> Tensor:
        return cross_entropy(logits().flatten(0, 1), labels.flatten())

    return _contender(model, logits, loss)


def _contender(
    model: nn.Module, logits: Callable[[], Any], loss: Callable[[], Tensor]
) -> Contender:
    @torch.no_grad()
    def forward() -> None:
        model.eval()
        logits()

    def both() -> float:
        model.train()
        model.zero_grad()
        result = loss()
        result.backward()
        return result.item()

    return Contender(forward, both)


def _ratio(row: dict[str, Any], ours: str = OURS) -> float:
    """Return how many times as fast as the faster one of transformers' attentions mtron is."""
    seconds = row["seconds"]
    theirs = [times for name, times in seconds.items() if name not in (OURS, PLAIN_OURS)]
    return min(times_as_fast(seconds[ours], times) for times in theirs)


def _table(rows: list[dict[str, Any]], peak: Peak) -> Table:
    table = Table()
    headers = (
        "family",
        "pass",
        "size",
        OURS,
        "plain",
        "eager",
        "sdpa",
        "x",
        "plain x",
        "% of best",
    )
    for header in headers:
        table.add_column(header, justify="left" if header in ("family", "pass") else "right")
    for row in rows:
        seconds = {key: median(times) for key, times in row["seconds"].items()}
        rates = {key: f"{row['tokens'] / time:,.0f}" for key, time in seconds.items()}
        speed = row["flops"] / seconds[OURS]
        table.add_row(
            row["family"],
            row["pass"],
            f"{row['parameters'] / 1e6:.1f}M",
            *(rates[OURS], rates[PLAIN_OURS], rates.get("eager", "-"), rates.get("sdpa", "-")),
            *(f"{_ratio(row):.2f}", f"{_ratio(row, PLAIN_OURS):.2f}"),
            f"{100 * speed / peak.best:.0f}",
        )
    return table


def _checks(rows: list[dict[str, Any]]) -> list[Check]:
    difference = max(
        abs(loss / row["losses"][OURS] - 1) for row in rows for loss in row["losses"].values()
    )
    checks = [Check("families: largest relative difference of losses", difference, most=1e-5)]
    for row in rows:
        what = f"families, {row['family']}, {row['pass']}: times as fast as transformers"
        checks.append(Check(what, _ratio(row), least=1))
        checks.append(Check(f"{what}, plain", _ratio(row, PLAIN_OURS), least=1))
    return checks
