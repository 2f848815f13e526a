"""The line that says how a run is doing: live on a terminal, now and then in a log file."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_SECONDS = 10.0
"""Seconds between lines when the output is no terminal."""


class ProgressLine:
    """Shows one line that is replaced on a terminal and repeated elsewhere."""

    def __init__(self, console: Console, total_steps: int) -> None:
        self._console = console
        self._total = total_steps
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._last_plain = -PLAIN_SECONDS
        self._validation: float | None = None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def validated(self, loss: float) -> None:
        """Remember the newest validation loss for the line."""
        self._validation = loss

    def note(self, message: str) -> None:
        """Print a line that stays."""
        self._console.print(message, highlight=False, soft_wrap=True)

    def update(self, step: int, loss: float, speed: float, mfu: float, left: float) -> None:
        """Show the state after `step`.

        Args:
            step: steps done.
            loss: training loss, nats per token.
            speed: tokens per second.
            mfu: share of the machine's matrix-product peak, 0 to 1.
            left: seconds to the end of the run.
        """
        validation = f"  val {self._validation:.3f}" if self._validation is not None else ""
        line = (
            f"step {step}/{self._total}  loss {loss:.3f}{validation}  "
            f"{speed:,.0f} tokens/s  MFU {mfu:.0%}  {format_seconds(left)} left"
        )
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif time.monotonic() - self._last_plain >= PLAIN_SECONDS or step == self._total:
            self._last_plain = time.monotonic()
            self.note(line)


def format_seconds(seconds: float) -> str:
    """Return a duration as `m:ss` or `h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
