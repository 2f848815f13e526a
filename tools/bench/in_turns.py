"""Contenders of one process that take turns, so that whatever the machine does hits them alike."""

import time
from collections.abc import Callable, Mapping

from ranks import WARM_UP_ROUNDS


def take_turns(turns: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Let contenders work one after the other, in rounds.

    Args:
        turns: what each does in its turn, by name.
        rounds: how many count; there are two more to warm up.

    Returns:
        For each contender the seconds of its turns, by round.
    """
    names = list(turns)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(WARM_UP_ROUNDS + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            turns[name]()
            seconds[name].append(time.perf_counter() - started)
    return {name: times[WARM_UP_ROUNDS:] for name, times in seconds.items()}
