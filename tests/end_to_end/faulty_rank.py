"""`mtron-train` with a fault: `python faulty_rank.py KIND RANK STEP MARK pretrain RUN.toml ...`.

The file MARK is written when the fault happens.
"""

import os
import signal
import sys
import time
from pathlib import Path

import mtron_train.step
from mtron_train.cli import main


def raise_error():
    raise ValueError("the disk of this rank is gone")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def sleep():
    time.sleep(3600)


kind, rank, step, mark = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
sys.argv = ["mtron-train", *sys.argv[5:]]
take_batch = mtron_train.step.global_batch


def faulty_batch(loader, config, at, device):
    if os.environ["RANK"] == rank and at == step:
        mark.touch()
        {"raise": raise_error, "die": die, "sleep": sleep}[kind]()
    return take_batch(loader, config, at, device)


mtron_train.step.global_batch = faulty_batch
main()
