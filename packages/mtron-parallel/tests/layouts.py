"""The cases of golden_layouts.toml, and what `ParallelConfig` says of them.

As a script it prints what it says of all, as JSON, with the time that took.
"""

import json
import sys
import time
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from parallel_rules import Replicate, Shard
from pydantic import ValidationError

from mtron_parallel.config import ParallelConfig

GOLDEN = tomllib.loads(Path(__file__).with_name("golden_layouts.toml").read_text("utf-8"))


@dataclass(frozen=True)
class Decoder:
    """A decoder of two layers, by its sizes; or any other parameters, by shape and rule."""

    heads: int = 8
    kv_heads: int = 8
    head_dim: int = 4
    intermediate: int = 96
    vocabulary: int = 101
    hidden: int = 24
    fused: bool = False
    others: tuple = ()

    def parameter_shapes(self):
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {"embed.weight": (self.vocabulary, self.hidden)}
        for layer in ("layers.0.", "layers.1."):
            shapes[layer + "norm.weight"] = (self.hidden,)
            shapes[layer + "q.weight"] = (query, self.hidden)
            shapes[layer + "k.weight"] = (kv, self.hidden)
            shapes[layer + "v.weight"] = (kv, self.hidden)
            shapes[layer + "o.weight"] = (self.hidden, query)
            if self.fused:
                shapes[layer + "gate_up.weight"] = (2 * self.intermediate, self.hidden)
            else:
                shapes[layer + "up.weight"] = (self.intermediate, self.hidden)
            shapes[layer + "down.weight"] = (self.hidden, self.intermediate)
        return shapes | {other["name"]: tuple(other["shape"]) for other in self.others}

    def layout(self):
        heads, kv, width = "num_attention_heads", "num_key_value_heads", "intermediate_size"
        fused = (self.intermediate, self.intermediate)
        kv_rule = Shard(unit=self.head_dim, replicate_if_fewer=True, of=kv)
        return {
            "embed.weight": Shard(pad=True, of="vocab_size"),
            "*.norm.weight": Replicate(sequence=True),
            "*.q.weight": Shard(unit=self.head_dim, of=heads),
            "*.[kv].weight": kv_rule,
            "*.o.weight": Shard(dim=1, unit=self.head_dim, of=heads),
            "*.up.weight": Shard(of=width),
            "*.gate_up.weight": Shard(segments=fused, of=width),
            "*.down.weight": Shard(dim=1, of=width),
            **{other["name"]: rule_of(other["rule"]) for other in self.others if "rule" in other},
        }


def rule_of(fields):
    """The rule of a TOML table; what is no table stands for itself."""
    if not isinstance(fields, dict):
        return fields
    return Shard(**{**fields, "segments": tuple(fields.get("segments", ()))})


def model_of(case):
    return Decoder(**case["model"]) if "model" in case else None


def messages(case):
    """Everything that is wrong with a case, as a user reads it."""
    try:
        config = ParallelConfig.model_validate(case["parallel"])
    except ValidationError as error:
        return [describe(problem) for problem in error.errors()]
    return config.check(case["world_size"], model_of(case))


def describe(problem):
    """Render one of pydantic's problems as the command line does."""
    key, known = problem["loc"][0], list(ParallelConfig.model_fields)
    if problem["type"] == "extra_forbidden":
        near = get_close_matches(key, known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
        return f"parallel.{key}: there is no such key; {remedy}"
    message = problem["msg"].removeprefix("Value error, ")
    value = problem["input"]
    shown = f'"{value}"' if isinstance(value, str) else repr(value)
    return f"parallel.{key}: {message[0].lower()}{message[1:]}, got {shown}"


if __name__ == "__main__":
    found = {case["name"]: messages(case) for case in GOLDEN["case"]}
    imported = [name for name in ("torch", "numpy") if name in sys.modules]
    # From the start of the process, imports included; of the processor, so that neighbours do
    # not count.
    print(json.dumps({"found": found, "seconds": time.process_time(), "imported": imported}))
