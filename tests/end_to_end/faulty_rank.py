"""`mtron-train` with a fault: `python faulty_rank.py KIND RANK STEP MARK pretrain RUN.toml ...`.

The file MARK is written when the fault happens.
"""

import itertools
import os
import runpy
import signal
import sys
import time
from pathlib import Path

from mtron_data import Loader


def raise_error():
    raise ValueError("the disk of this rank is gone")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def sleep():
    time.sleep(3600)


kind, rank, step, mark = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
sys.argv = ["mtron-train", *sys.argv[5:]]
take_batch = Loader.__next__
taken = itertools.count()


def faulty_batch(self):
    if next(taken) == step and os.environ["RANK"] == rank:
        mark.touch()
        {"raise": raise_error, "die": die, "sleep": sleep}[kind]()
    return take_batch(self)


Loader.__next__ = faulty_batch
runpy.run_module("mtron_train", run_name="__main__")
