import json
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtron_parallel.config import ParallelConfig
from mtron_parallel.cuts import cut, rule_of

SCRIPT = Path(__file__).with_name("layouts.py")
Decoder = runpy.run_path(str(SCRIPT))["Decoder"]
CASES = tomllib.loads(SCRIPT.with_name("golden_layouts.toml").read_text("utf-8"))["case"]
BUDGET_SECONDS = 1.0


@pytest.fixture(scope="module")
def report():
    """What a fresh process says of all cases."""
    command = [sys.executable, "-W", "error", str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_refusal_is_word_for_word(report, case):
    assert report["found"][case["name"]] == case["expected"]


def test_the_list_is_long_and_has_no_doubles():
    assert len({case["name"] for case in CASES}) == len(CASES) >= 30
    assert all(case["expected"] for case in CASES)


def test_all_are_refused_in_a_second_without_torch(report):
    assert report["imported"] == []
    assert report["seconds"] < BUDGET_SECONDS


NUMBERS = re.compile(r"-?\d+")


def remedies(field, text):
    """Read what a message says one should use: changes of the section and of the world size."""
    for option in text.split(", or "):
        values = option.split(" with ")[0]
        numbers = [int(number) for number in NUMBERS.findall(values)]
        if option.endswith("ranks (--nproc)"):
            yield from ({"world_size": number} for number in numbers)
        elif option.startswith("parallel.dp = -1 with parallel.tp = "):
            yield from ({"dp": -1, "tp": int(n)} for n in NUMBERS.findall(option)[1:])
        elif option.endswith(" with parallel.dp = -1"):
            yield from ({field: number, "dp": -1} for number in numbers)
        else:
            named = re.match(r"parallel\.(\w+) = ", option)
            yield from ({named[1] if named else field: number} for number in numbers)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "parallel.dp = 4 or -1, or parallel.tp = 8, or 6 ranks (--nproc)",
            [{"dp": 4}, {"dp": -1}, {"tp": 8}, {"world_size": 6}],
        ),
        (
            "1, 2 or 4, or start 6 or 9 ranks (--nproc)",
            [{"tp": 1}, {"tp": 2}, {"tp": 4}, {"world_size": 6}, {"world_size": 9}],
        ),
        ("1 or 2 with parallel.dp = -1", [{"tp": 1, "dp": -1}, {"tp": 2, "dp": -1}]),
        ("parallel.dp = -1 with parallel.tp = 1 or 2", [{"dp": -1, "tp": 1}, {"dp": -1, "tp": 2}]),
    ],
)
def test_remedies_are_read_as_they_are_written(text, expected):
    assert list(remedies("tp", text)) == expected


sizes = st.integers(1, 12)
decoders = st.fixed_dictionaries(
    {
        "heads": sizes,
        "kv_heads": sizes,
        "intermediate": st.integers(1, 48),
        "vocabulary": st.integers(1, 100),
        "fused": st.booleans(),
    }
)


@settings(max_examples=300, deadline=None)
@given(
    tp=st.integers(1, 12),
    dp=st.integers(-1, 6).filter(bool),
    world_size=st.integers(1, 48),
    sizes=decoders,
)
def test_every_suggestion_is_legal_and_what_is_legal_can_be_cut(tp, dp, world_size, sizes):
    model, layout = Decoder(**sizes), Decoder(**sizes).layout()
    problems = ParallelConfig(tp=tp, dp=dp).check(world_size, model)
    assert len(set(problems)) == len(problems)
    for message in problems:
        field, text = re.fullmatch(r"parallel\.(\w+): .*; use (.*)", message).groups()
        suggested = list(remedies(field, text))
        assert suggested, message
        for changes in suggested:
            changed = {"tp": tp, "dp": dp, "world_size": world_size} | changes
            world = changed.pop("world_size")
            assert ParallelConfig(**changed).check(world, model) == [], (message, changes)
    can_be_cut = True
    for name, shape in model.parameter_shapes().items():
        try:
            cut(shape, rule_of(name, layout), tp, 0)
        except ValueError:
            can_be_cut = False
    fits = world_size == dp * tp if dp > 0 else world_size % tp == 0
    assert (problems == []) == (can_be_cut and fits)
