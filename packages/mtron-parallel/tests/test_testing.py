import importlib.util
import os
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
import torch.distributed as dist

from mtron_parallel.pool_server import PoolServer
from mtron_parallel.testing import WorkersFailed

# Far below the minute that a run may take, far above what a busy machine needs.
LIMIT_SECONDS = 15


@dataclass
class Point:
    rank: int
    values: torch.Tensor


def rank_sum(first, *, second=0.0):
    value = torch.tensor(first + second + dist.get_rank(), dtype=torch.float64)
    dist.all_reduce(value)
    return dist.get_rank(), dist.get_world_size(), value.item()


def process_number():
    return os.getpid()


def random_point():
    return Point(dist.get_rank(), torch.rand(3).bfloat16())


def raise_on(rank):
    if dist.get_rank() == rank:
        time.sleep(0.1)
        raise KeyError("no such weight")
    dist.all_reduce(torch.ones(1))


def fail_everywhere():
    raise ValueError("the same")


def die_on(rank, number):
    dist.barrier()  # all are connected
    if dist.get_rank() == rank:
        os.kill(os.getpid(), number) if number else os._exit(3)
    dist.all_reduce(torch.ones(1))


def sleep_on(rank):
    if dist.get_rank() == rank:
        time.sleep(60)
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(1), group=None)


def hold_lock():
    (dist.get_rank() and pow(3, 10**9)) or dist.barrier()


def warn():
    warnings.warn("old", FutureWarning, stacklevel=1)


def unsendable():
    return (number for number in range(3))


def use_group(ranks):
    group = dist.new_group(ranks)
    value = torch.ones(1)
    if dist.get_rank() in ranks:
        dist.all_reduce(value, group=group)
    return value.item()


def failure(workers, *arguments, **options):
    """The text of the failure that a run must end with, and how long that took."""
    start = time.monotonic()
    with pytest.raises(WorkersFailed) as caught:
        workers.run(*arguments, **options)
    return str(caught.value), time.monotonic() - start


def test_results_come_by_rank(workers):
    assert workers.run(rank_sum, 3, 1.0, second=0.5) == [(r, 3, 7.5) for r in range(3)]
    assert workers.run(rank_sum, 2, 1.0) == [(r, 2, 3.0) for r in range(2)]
    assert workers.run(rank_sum, 1, 1.0) == [(0, 1, 1.0)]


def test_processes_are_used_again(workers):
    first = workers.run(process_number, 3)
    assert workers.run(process_number, 2) == first[:2]
    assert len(set(first)) == 3


def test_groups_of_a_run_end_with_it(workers):
    assert workers.run(use_group, 3, [0, 2]) == [2.0, 1.0, 2.0]
    assert workers.run(use_group, 3, [0, 1]) == [2.0, 2.0, 1.0]


def test_values_keep_their_type_and_the_generator_is_seeded(workers):
    first, second = workers.run(random_point, 2), workers.run(random_point, 2)
    assert [type(point) for point in first] == [Point, Point]
    assert first[1].rank == 1
    assert first[0].values.dtype == torch.bfloat16
    for point in (*first, *second):
        assert torch.equal(point.values, first[0].values)


def test_modules_beside_the_function_can_be_imported(workers, tmp_path, monkeypatch):
    (tmp_path / "beside_it.py").write_text("ANSWER = 42\n")
    file = tmp_path / "some_functions.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Answer:\n    number: int\n"
        "def answer():\n    from beside_it import ANSWER\n    return Answer(ANSWER)\n"
    )
    spec = importlib.util.spec_from_file_location("no_package.finds-this", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "no_package", ModuleType("no_package"))
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    assert workers.run(module.answer, 2) == [module.Answer(42)] * 2


def test_an_exception_ends_the_run_and_is_shown(workers):
    text, seconds = failure(workers, raise_on, 3, 1)
    assert text.startswith("rank 1 of 3:\nTraceback")
    assert text.count("Traceback") == 1
    assert "in raise_on\n" in text
    assert "KeyError: 'no such weight'" in text
    assert text.rstrip().endswith("ranks 0, 2 of 3: did not return either, and was ended.")
    assert seconds < LIMIT_SECONDS
    assert workers.run(rank_sum, 3, 0.0) == [(r, 3, 3.0) for r in range(3)]


def test_equal_exceptions_are_shown_once(workers):
    text, seconds = failure(workers, fail_everywhere, 3)
    assert text.startswith("ranks ")
    assert sorted(text.partition(" of 3")[0][len("ranks ") :].split(", ")) == ["0", "1", "2"]
    assert text.count("ValueError: the same") == 1
    assert seconds < LIMIT_SECONDS


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (signal.SIGKILL, "was killed by signal 9 (SIGKILL)"),
        (signal.SIGSEGV, "was killed by signal 11 (SIGSEGV)"),
        (0, "ended with exit code 3"),
    ],
)
def test_a_death_comes_before_the_connections_that_it_broke(workers, number, what):
    text, seconds = failure(workers, die_on, 3, 2, number)
    assert text.startswith(f"rank 2 of 3:\nThe process {what}.\n")
    assert "in all_reduce" in text, "what the others ran into"
    assert seconds < LIMIT_SECONDS
    assert workers.run(rank_sum, 3, 0.0) == [(r, 3, 3.0) for r in range(3)]


def test_a_hang_ends_with_every_stack(workers):
    text, seconds = failure(workers, sleep_on, 3, 1, timeout_seconds=0.5)
    assert text.startswith("no end after 0.5 s")
    first, _, second = text.partition("rank 1 of 3 is here:")
    assert "rank 0 of 3 is here:" in first
    assert " in all_reduce\n" in first
    assert " in sleep_on\n" in first
    assert " in sleep_on\n" in second
    assert "rank 2 of 3: returned." in second
    assert seconds < LIMIT_SECONDS
    assert workers.run(rank_sum, 3, 0.0) == [(r, 3, 3.0) for r in range(3)]


def test_a_hang_that_holds_the_lock_of_python_shows_its_stack(workers):
    text, seconds = failure(workers, hold_lock, 2, timeout_seconds=0.5)
    assert " in hold_lock\n" in text.partition("rank 1 of 2 is here:")[2]
    assert seconds < LIMIT_SECONDS


def test_warnings_are_errors(workers):
    assert "FutureWarning: old" in failure(workers, warn, 1)[0]


def test_a_result_that_cannot_be_sent_is_a_failure(workers):
    assert "generator" in failure(workers, unsendable, 2)[0]


def test_what_cannot_run_is_refused_before_it_starts(workers):
    with pytest.raises(ValueError, match=r"find it by name in a file, got .*<lambda>"):
        workers.run(lambda: 1, 2)
    for count in (0, 99):
        with pytest.raises(ValueError, match=rf"runs 1 to \d+ ranks, got {count}; make it with"):
            workers.run(rank_sum, count, 1.0)


def test_no_process_outlives_the_server():
    server = PoolServer([])
    workers = [server.fork() for _ in range(3)]  # their end when these connections close
    pids = [pid for pid, _ in workers]
    server.kill(pids[:1])
    assert server.poll(pids[0]) == -signal.SIGKILL
    assert server.poll(pids[1]) is None
    os.kill(pids[1], signal.SIGSTOP)  # one that cannot notice by itself
    server.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_dead_server_is_reported():
    server = PoolServer(["no.such.module"])
    with pytest.raises(RuntimeError, match="server has ended with exit code 1"):
        server.fork()
    server.close()
