"""A rank of a job that sums until one has a fault: `fault_script.py FAULT RANK TIMEOUT_SECONDS`."""

import datetime
import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from mtron_parallel.failures import Cause, cause_of
from mtron_parallel.launched import die_with_parent, report_failures
from mtron_parallel.watch import CollectiveTimeout, PeerLost, Watch

FAULT, FAULTY_RANK, TIMEOUT_SECONDS = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])


def read_slowly(step):
    if step != 2 or int(os.environ["RANK"]) != FAULTY_RANK:
        return
    print(f"fault at {time.time()}", flush=True)
    if FAULT == "raise":
        raise ValueError("data.train: line 7 is no JSON; correct it")
    if FAULT == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        time.sleep(1)


def sum_once(watch):
    watch.entered("all_reduce over dp")
    try:
        dist.all_reduce(torch.ones(8))
    except RuntimeError as error:
        if cause_of(error) is Cause.TIMEOUT:
            raise CollectiveTimeout(watch.explain(TIMEOUT_SECONDS)) from error
        if cause_of(error) is Cause.LOST_PEER:
            raise PeerLost(str(error)) from error
        raise
    watch.left()


def run(rank, world_size):
    # Joining a job may take long on a busy machine; only the sums have the short limit.
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    try:
        with Watch(dist.distributed_c10d._get_default_store(), rank, world_size) as watch:
            dist.barrier()
            group = dist.distributed_c10d._get_default_group()
            limit = datetime.timedelta(seconds=TIMEOUT_SECONDS)
            dist.distributed_c10d._set_pg_timeout(limit, group)
            for step in range(100):
                read_slowly(step)
                sum_once(watch)
    finally:
        dist.destroy_process_group()  # torch aborts processes that end with connections open


die_with_parent(os.environ)
with report_failures(os.environ):
    run(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
