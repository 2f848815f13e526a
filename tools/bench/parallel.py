"""Parallel training on CPU ranks: mtron beside what torch has, beside formulas, beside limits.

    python tools/bench/parallel.py               # everything, 2 and 4 gloo ranks, 4 minutes
    python tools/bench/parallel.py --quick       # small and few: does it still run?
    python tools/bench/parallel.py --only bytes memory --output parallel.json

Every rank computes with one thread. Contenders live in the same processes and work in turns; a
ratio is the median over rounds. Run it on a machine that does nothing else. Exits with 1 when
something required is missed.
"""

import argparse
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import bytes_sent
import memory_used
import tensor_parallel_speed
import zero_speed
from machine import describe
from ranks import Ranks
from rich.console import Console

SECTIONS = {
    "tp": tensor_parallel_speed.run,
    "zero": zero_speed.run,
    "bytes": bytes_sent.run,
    "memory": memory_used.run,
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small models, few rounds")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--ranks", nargs="+", type=int, choices=(2, 4), default=[2, 4])
    parser.add_argument("--output", type=Path, help="also write the numbers as JSON")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the ranks: they read it when they load torch
    console = Console(width=118, highlight=False)
    console.print(f"Parallel training on {describe(1)}")
    sections: dict[str, Any] = {}
    met = True
    with ExitStack() as stack:
        jobs = {size: stack.enter_context(Ranks(size)) for size in options.ranks}
        for name in options.only:
            outcome = SECTIONS[name](jobs, options.quick, console)
            for check in outcome.checks:
                console.print(str(check), markup=False, soft_wrap=True)
            met = met and all(check.is_met or check.is_aim for check in outcome.checks)
            sections[name] = outcome.rows
    if options.output:
        numbers = {"machine": describe(1), "sections": sections}
        options.output.write_text(json.dumps(numbers, indent=2) + "\n")
    sys.exit(not met)


if __name__ == "__main__":
    main()
