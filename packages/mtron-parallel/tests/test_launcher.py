import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from mtron_parallel.failures import Cause, Ending, Failure, cause_of, describe, first_failure
from mtron_parallel.launcher import launch
from mtron_parallel.watch import CollectiveTimeout, PeerLost

HERE = Path(__file__).parent
GRACE_SECONDS = 0.5
LAUNCH = """
import sys
from mtron_parallel.launcher import launch
code = launch(sys.argv[3:], int(sys.argv[1]), grace_seconds=float(sys.argv[2]))
assert "torch" not in sys.modules
sys.exit(code)
"""


class Job:
    """A launcher in a process group of its own, as a shell starts it, with its ranks."""

    def __init__(self, folder, nproc, *command, grace_seconds=GRACE_SECONDS, **environment):
        self.folder = folder
        self.nproc = nproc
        self.launcher = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(nproc), str(grace_seconds), *command],
            env={**os.environ, "TMPDIR": str(folder), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def ranks(self):
        """What each rank has said when it was ready."""
        files = [self.folder / f"rank-{rank}" for rank in range(self.nproc)]
        wait_until(lambda: all(file.exists() for file in files))
        return [json.loads(file.read_text()) for file in files]

    def interrupt(self, number):
        """Send a signal as a terminal does: to the whole group."""
        os.killpg(self.launcher.pid, number)

    def end(self):
        """The exit code, what was written on standard error, and the seconds that it took."""
        start = time.monotonic()
        _, errors = self.launcher.communicate(timeout=30)
        return self.launcher.returncode, errors, time.monotonic() - start


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a job of the script; whatever is left of it is killed."""
    jobs = []

    def start_job(what, nproc=3, **options):
        command = [sys.executable, str(HERE / "launched_script.py"), str(tmp_path), what]
        jobs.append(Job(tmp_path, nproc, *command, **options))
        return jobs[-1]

    yield start_job
    for job in jobs:
        pids = [json.loads(file.read_text())["pid"] for file in tmp_path.glob("rank-*")]
        for pid in (job.launcher.pid, *pids):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        job.launcher.communicate()


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def alive(pid):
    """Whether a process runs; one that has ended may still be listed until its parent looks."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip()[:1] not in ("", "Z")


def test_ranks_get_their_environment(start, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    job = start("nothing", 2)
    environments = [values["environment"] for values in job.ranks()]
    assert job.end()[:2] == (0, "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for rank, values in enumerate(environments):
        assert values["RANK"] == values["LOCAL_RANK"] == str(rank)
        assert values["WORLD_SIZE"] == values["LOCAL_WORLD_SIZE"] == "2"
        assert values["MASTER_ADDR"] == "127.0.0.1"
        assert values["OMP_NUM_THREADS"] == str(max(1, cores // 2))
    assert environments[0]["MASTER_PORT"] == environments[1]["MASTER_PORT"]


def test_what_is_set_stays(start):
    job = start("nothing", 2, OMP_NUM_THREADS="7", RANK="5")
    environments = [values["environment"] for values in job.ranks()]
    assert [values["OMP_NUM_THREADS"] for values in environments] == ["7", "7"]
    assert [values["RANK"] for values in environments] == ["0", "1"]
    assert job.end()[0] == 0


def test_output_is_inherited(capfd):
    code = "import os; print('rank', os.environ['RANK'])"
    assert launch([sys.executable, "-c", code], 2) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["rank 0", "rank 1"]


def test_an_exception_ends_the_job_with_its_message_and_place(start):
    code, errors, seconds = start("refuse").end()
    assert code == 1
    assert re.fullmatch(
        r"error: rank 1 of 3: data\.train: no such file, got x; name one that exists "
        r"\(at launched_script\.py:\d+ in refuse\); 2 other ranks ended because of it\n",
        errors,
    )
    assert seconds < GRACE_SECONDS + 5


def test_an_unexpected_exception_shows_its_traceback_too(start):
    code, errors, _ = start("stumble").end()
    assert code == 1
    traceback, _, message = errors.partition("error: ")
    assert traceback.startswith("Traceback")
    assert re.match(
        r"rank 1 of 3: KeyError: 'no such key' \(at launched_script\.py:\d+ in stumble\);", message
    )


def test_the_cause_is_shown_although_others_failed_earlier(start):
    code, errors, _ = start("lose each other", grace_seconds=10).end()
    assert code == 1
    assert errors.startswith("error: rank 1 of 3: data.train: no such file")
    assert errors.endswith("in refuse); 2 other ranks ended because of it\n")


def test_the_same_error_everywhere_is_shown_once(start):
    code, errors, _ = start("refuse everywhere").end()
    assert code == 1
    assert errors.count("data.train: no such file") == 1
    assert errors.endswith("; 2 other ranks failed as well\n")


def test_an_exit_code_is_passed_on(start):
    code, errors, _ = start("exit").end()
    assert code == 3
    assert errors.startswith("error: rank 1 of 3 ended with exit code 3")


def test_a_rank_that_reports_and_does_not_end_ends_the_job(start):
    code, errors, seconds = start("report and hang").end()
    assert code == 1
    assert errors.startswith("error: rank 1 of 3: data.train: no such file")
    assert seconds < GRACE_SECONDS + 5


def test_a_killed_rank_ends_the_job_with_its_last_place(start):
    job = start("wait")
    ranks = job.ranks()
    time.sleep(1.5)  # it notes its place once a second
    os.kill(ranks[2]["pid"], signal.SIGKILL)
    code, errors, seconds = job.end()
    assert code == 128 + 9
    assert re.fullmatch(
        r"error: rank 2 of 3 was killed by signal 9 \(SIGKILL\); last known place: "
        r"launched_script\.py:\d+ in wait_for_ever; 2 other ranks ended because of it\n",
        errors,
    )
    assert seconds < GRACE_SECONDS + 5
    assert not any(alive(values["pid"]) for values in ranks)
    assert not list(job.folder.glob("mtron-*")), "its files are removed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_rank_once_and_gives_it_time_to_save(start, number):
    job = start("save")
    job.ranks()
    job.interrupt(number)
    code, errors, seconds = job.end()
    assert (code, errors) == (130, "")
    assert seconds > 0.9 > GRACE_SECONDS
    saved = [json.loads((job.folder / f"saved-{rank}").read_text()) for rank in range(3)]
    assert saved == [[number]] * 3


def test_ctrl_c_of_a_terminal_reaches_every_rank_once(tmp_path):
    terminal, theirs = pty.openpty()
    command = [sys.executable, str(HERE / "launched_script.py"), str(tmp_path), "save"]
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, "2", str(GRACE_SECONDS), *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    wait_until(lambda: all((tmp_path / f"rank-{rank}").exists() for rank in range(2)))
    os.write(terminal, b"\x03")
    assert launcher.wait(30) == 130
    saved = [json.loads((tmp_path / f"saved-{rank}").read_text()) for rank in range(2)]
    assert saved == [[signal.SIGINT]] * 2
    os.close(terminal)
    os.close(theirs)


def test_a_second_signal_kills(start):
    job = start("save")
    ranks = job.ranks()
    job.interrupt(signal.SIGTERM)
    time.sleep(0.3)
    job.interrupt(signal.SIGINT)
    code, _, seconds = job.end()
    assert code == 130
    assert seconds < 5
    assert not list(job.folder.glob("saved-*"))
    assert not any(alive(values["pid"]) for values in ranks)


def test_a_signal_before_the_ranks_can_save_ends_them(start):
    job = start("wait")
    job.ranks()
    job.interrupt(signal.SIGTERM)
    assert job.end()[:2] == (128 + signal.SIGTERM, "")


def test_ranks_end_with_a_killed_launcher(start):
    job = start("help")
    ranks = job.ranks()
    pids = [values[name] for values in ranks for name in ("pid", "helper")]
    assert all(alive(pid) for pid in pids)
    job.launcher.kill()
    wait_until(lambda: not any(alive(pid) for pid in pids), seconds=10)
    assert not list(job.folder.glob("mtron-*")), "its files are removed"


def test_nothing_is_left_when_all_are_killed(start):
    job = start("help")
    ranks = job.ranks()
    for pid in (job.launcher.pid, *(values["pid"] for values in ranks)):
        os.kill(pid, signal.SIGKILL)
    for values in ranks:
        os.kill(values["helper"], signal.SIGKILL)
    wait_until(lambda: not any(alive(values["helper"]) for values in ranks))


def test_what_a_rank_has_started_ends_with_it(start):
    job = start("help")
    ranks = job.ranks()
    (job.folder / "go").touch()
    assert job.end()[0] == 1
    assert not any(alive(values["helper"]) for values in ranks)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="nproc: a job has at least one process, got 0"):
        launch(["true"], 0)
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        launch(["no-such-program"], 2)


def test_causes():
    gloo = "[pair.cc:537] Read error [127.0.0.1]:63110: Connection reset by peer."
    assert cause_of(PeerLost("x")) is cause_of(RuntimeError(gloo)) is Cause.LOST_PEER
    late = "Timed out waiting 3000ms for recv operation to complete"
    assert cause_of(CollectiveTimeout("x")) is cause_of(RuntimeError(late)) is Cause.TIMEOUT
    assert cause_of(RuntimeError("shapes differ")) is cause_of(OSError(gloo)) is Cause.OWN


def test_the_first_failure_is_the_cause_not_the_earliest():
    def ending(rank, code, seconds, cause=None, stopped=False):
        failure = cause and Failure(rank, Cause[cause], f"m{rank}", None, seconds)
        return Ending(rank, code, seconds, stopped, failure)

    lost, late, own = (
        ending(0, 1, 1, "LOST_PEER"),
        ending(1, 1, 2, "TIMEOUT"),
        ending(2, 1, 3, "OWN"),
    )
    killed, ended = ending(3, -11, 4), ending(4, 0, 0)
    stopped, left = ending(5, -9, 0, stopped=True), ending(6, 130, 0)
    assert first_failure([lost, late, own, killed, ended, stopped, left]) is own
    assert first_failure([lost, late, killed, stopped]) is killed
    assert first_failure([lost, late, stopped]) is late
    assert first_failure([lost, stopped]) is lost
    assert first_failure([stopped, ended, left]) is None
    text = "error: rank 3 of 3 was killed by signal 11 (SIGSEGV); 1 other rank ended because of it"
    assert describe(killed, [killed, lost, ended]) == text


@pytest.mark.parametrize(
    ("nproc", "faulty", "grace_seconds"),
    # Two ranks leave time for a busy machine.
    [(2, 1, 1.0), pytest.param(3, 0, 3.0, marks=pytest.mark.slow)],
    ids=["2 ranks", "3 ranks"],
)
@pytest.mark.parametrize("fault", [pytest.param("raise", marks=pytest.mark.slow), "die", "sleep"])
def test_a_fault_of_a_rank_ends_the_job_in_time_and_is_named(
    tmp_path, fault, nproc, faulty, grace_seconds
):
    limit_seconds = 2.0 if fault == "sleep" else 60.0
    script = str(HERE / "fault_script.py")
    command = [sys.executable, script, fault, str(faulty), str(limit_seconds)]
    job = Job(tmp_path, nproc, *command, grace_seconds=grace_seconds, OMP_NUM_THREADS="1")
    output, errors = job.launcher.communicate(timeout=120)
    seconds = time.time() - float(re.search(r"fault at ([\d.]+)", output)[1])
    others = "rank 0 waits" if nproc == 2 else "ranks 1, 2 wait"
    expected = {
        "raise": r": data\.train: line 7 is no JSON; correct it "
        r"\(at fault_script\.py:\d+ in read_slowly\)",
        "die": r" was killed by signal 9 \(SIGKILL\)",
        "sleep": rf": after 2 s rank {faulty} is not in a collective: it is at "
        rf"fault_script\.py:\d+ in read_slowly; {others} in all_reduce over dp for",
    }
    rank = f"[^{faulty}]" if fault == "sleep" else faulty
    assert re.match(f"error: rank {rank} of {nproc}{expected[fault]}", errors), errors
    assert errors.count("\n") == 1
    assert job.launcher.returncode == (137 if fault == "die" else 1)
    assert seconds < 5 + (limit_seconds if fault == "sleep" else 0)
