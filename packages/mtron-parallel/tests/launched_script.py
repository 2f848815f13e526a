"""A process of a job, without torch: `launched_script.py FOLDER WHAT`.

It leaves the file `rank-<rank>` with its number in FOLDER when it is ready, and does WHAT.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from mtron_parallel.launched import die_with_parent, report_failures
from mtron_parallel.watch import CollectiveTimeout, PeerLost

FOLDER, WHAT = Path(sys.argv[1]), sys.argv[2]
RANK = int(os.environ["RANK"])


def ready(**more):
    values = {"pid": os.getpid(), "group": os.getpgrp(), "environment": dict(os.environ), **more}
    (FOLDER / f"new-{RANK}").write_text(json.dumps(values))
    (FOLDER / f"new-{RANK}").rename(FOLDER / f"rank-{RANK}")


def wait_for_ever():
    ready()
    while True:
        time.sleep(60)


def refuse():
    raise ValueError("data.train: no such file, got x; name one that exists")


def stumble():
    return {}["no such key"]


def save_when_asked():
    """Count the signals; when one has come, take longer than a launcher gives after a failure."""
    received = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: received.append(number))
    ready()
    while not received:
        time.sleep(0.01)
    time.sleep(1.0)
    (FOLDER / f"saved-{RANK}").write_text(json.dumps(received))
    sys.exit(130)


def start_helper():
    """Start a process that would live on."""
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    ready(helper=helper.pid)
    while not (FOLDER / "go").exists():
        time.sleep(0.01)


def work():
    if WHAT == "nothing":
        ready()
    elif WHAT == "refuse everywhere" or (WHAT == "refuse" and RANK == 1):
        refuse()
    elif WHAT == "stumble" and RANK == 1:
        stumble()
    elif WHAT == "lose each other":
        # The rank that fails first says so last.
        if RANK == 1:
            time.sleep(0.3)
            refuse()
        raise PeerLost("Connection closed") if RANK == 0 else CollectiveTimeout("waited")
    elif WHAT == "exit" and RANK == 1:
        os._exit(3)
    elif WHAT == "save":
        save_when_asked()
    elif WHAT == "help":
        start_helper()
        if RANK == 1:
            refuse()
        wait_for_ever()
    elif WHAT == "report and hang" and RANK == 1:
        try:
            with report_failures(os.environ):
                refuse()
        finally:
            time.sleep(60)
    else:
        wait_for_ever()


die_with_parent(os.environ)
with report_failures(os.environ):
    work()
