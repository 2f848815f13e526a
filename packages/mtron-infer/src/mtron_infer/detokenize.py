"""Turn tokens into text while they arrive: whole characters only, and never a stop string."""

from collections.abc import Callable, Sequence

_UNDECIDED = "\ufffd"
"""What decoders give for bytes that are no character, or not yet one."""

_MAX_UNDECIDED_TOKENS = 8
_MAX_WINDOW_TOKENS = 24


class Detokenizer:
    """The text of a growing list of tokens.

    A character may be spread over several tokens, and decoding one token alone may drop the space
    before it. So a window of recent tokens is decoded together, and a replacement character at
    its end is held back until the next tokens decide what it is.

    Args:
        decode: text of a list of token ids.
        before: tokens that precede the first one and whose text is not returned.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(before)
        self._shown = len(decode(before)) if before else 0  # characters of the window returned
        self._clean = len(self._window)  # tokens of the window at whose end its text was whole
        self._held_tokens = 0

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is now certain and was not returned before."""
        self._window.append(token_id)
        text = self._decode(self._window)
        whole = text.rstrip(_UNDECIDED)
        if len(whole) == len(text):
            self._held_tokens = 0
            new = self._show(text)
            self._slide()
            return new
        self._held_tokens += 1
        if self._held_tokens > _MAX_UNDECIDED_TOKENS:
            # A character has at most four bytes: what came before the last three is no character.
            whole = text[: max(len(whole), len(text) - 3)]
        return self._show(whole)

    def flush(self) -> str:
        """Return what was held back; no token follows."""
        return self._show(self._decode(self._window)) if self._window else ""

    def _show(self, text: str) -> str:
        new, self._shown = text[self._shown :], max(self._shown, len(text))
        return new

    def _slide(self) -> None:
        """Shorten the window, so that a step costs the same however long the text is."""
        boundary = self._clean
        self._clean = len(self._window)
        if len(self._window) > _MAX_WINDOW_TOKENS:
            self._window = self._window[boundary:]
            self._shown = len(self._decode(self._window))
            self._clean = len(self._window)


class StopMatcher:
    """Let text through up to the first stop string.

    The stop string that is complete first counts, as if the text came character by character, so
    the result does not depend on how it is cut into pieces.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """Add text and return what can be shown: no part of it can become a stop string."""
        self._held += text
        found = [
            (start + len(stop), start)
            for stop in self._stop
            if (start := self._held.find(stop)) >= 0
        ]
        if found:
            self.matched = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        kept = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - kept
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """Return what was held back; no text follows."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop` but is not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
