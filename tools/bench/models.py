"""Model families on CPU: mtron's plain models beside transformers, and the mixture of experts.

    python tools/bench/models.py                     # everything, about ten minutes
    python tools/bench/models.py --quick             # small and few: does it still run?
    python tools/bench/models.py --only families --families llama gpt2 --output models.json

Nothing is compiled or replaced by kernels: both sides run as they are built. Contenders have equal
weights, live in one process and work in turns; a ratio is the median over rounds. Run it on a
machine that does nothing else. Exits with 1 when something required is missed.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import model_families
import models_moe
from machine import describe, measure_peak
from rich.console import Console


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(model_families.FAMILIES)
    parser.add_argument("--quick", action="store_true", help="small models, few rounds")
    parser.add_argument("--only", nargs="+", choices=("families", "moe"))
    parser.add_argument("--families", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="also write the numbers as JSON")
    options = parser.parse_args()
    options.only = options.only or ["families", "moe"]
    if options.quick:
        options.rounds = 2
    return options


def main() -> None:
    import torch

    options = parse_arguments()
    torch.set_num_threads(options.threads)
    console = Console(width=118, highlight=False)
    console.print(f"Model families on {describe(options.threads)}")
    peak = measure_peak(0.2 if options.quick else 2.0)
    console.print(
        f"float32 matrix products: {peak.best / 1e9:.0f} GFLOP/s at best, "
        f"{peak.torch / 1e9:.0f} by torch.mm."
    )
    sections: dict[str, Any] = {}
    met = True
    for name in options.only:
        if name == "families":
            outcome = model_families.run(
                options.families, options.rounds, options.quick, peak, console
            )
        else:
            outcome = models_moe.run(options.quick, peak, console)
        for check in outcome.checks:
            console.print(str(check), markup=False, soft_wrap=True)
        met = met and all(check.is_met or check.is_aim for check in outcome.checks)
        sections[name] = outcome.rows
    if options.output:
        machine = {"machine": describe(options.threads), "peak": vars(peak)}
        options.output.write_text(json.dumps(machine | {"sections": sections}, indent=2) + "\n")
    sys.exit(not met)


if __name__ == "__main__":
    main()
