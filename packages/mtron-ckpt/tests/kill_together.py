"""Kills a random one of four saving processes, or all: `python kill_together.py DIR SEED TRIALS`.

Prints a line per trial: who was killed, how long the others needed to end after that, and what they
said. They go on from the step that the killed ones have reached.
"""

import os
import random
import re
import signal
import sys
import time
from functools import partial
from pathlib import Path

from forked_writers import COUNT, FAILED, check, fork, manager_of, save, status_of

from mtron_ckpt import Writers

LONGEST_SECONDS = 0.25
TIMEOUT_SECONDS = 2.0
"""Only a writer that was killed between two saves is noticed by time."""


def save_forever(root: Path, first: int, writers: Writers, progress: int) -> None:
    with manager_of(root, writers, keep_last=2) as manager:
        for step in range(first, first + 10_000):
            handle = save(manager, step, writers.rank)
            os.write(progress, b"0\n")
            handle.wait()
            os.write(progress, f"{step}\n".encode())


def trial(directory: Path, number: int, rng: random.Random) -> None:
    root = directory / "root"
    reached = max(check(root), default=0)
    ready, progress = os.pipe()
    reports = [directory / f"report-{number}-{rank}" for rank in range(COUNT)]
    children = []
    for rank in range(COUNT):
        writers = Writers(rank, COUNT, f"{directory} {number}", TIMEOUT_SECONDS)
        run = partial(save_forever, root, reached + 1, writers, progress)
        children.append(fork(run, reports[rank]))
    os.close(progress)
    os.read(ready, 1)
    time.sleep(rng.random() * LONGEST_SECONDS)
    victims = [rng.randrange(COUNT)] if rng.random() < 0.8 else range(COUNT)
    for victim in victims:
        os.kill(children[victim], signal.SIGKILL)
    start = time.monotonic()
    statuses = [status_of(child) for child in children]
    seconds = time.monotonic() - start
    with os.fdopen(ready) as stream:
        saved = max(map(int, stream.read().split()), default=0)
    said = ""
    for rank, status in enumerate(statuses):
        if rank in victims:
            assert status in (-signal.SIGKILL, FAILED), status
        else:
            assert status == FAILED, status
            said = reports[rank].read_text()
            assert re.search(rf"writer {victims[0]}\b", said), said
    newest = max(check(root), default=0)
    assert newest >= max(saved, reached)
    print(newest, "all" if len(victims) > 1 else "one", f"{seconds:.2f}", said, flush=True)


def main(directory: Path, seed: int, trials: int) -> None:
    rng = random.Random(seed)
    for number in range(trials):
        trial(directory, number, rng)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
