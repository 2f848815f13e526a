"""Cuts a document into windows that the model can see, so that each token is scored once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A piece of a sequence; the model reads it and the last tokens of it are scored.

    Attributes:
        begin: index of its first token in the sequence.
        end: index after its last token.
        first_scored: index of the first token that is scored; all up to `end` are.
    """

    begin: int
    end: int
    first_scored: int


def plan_windows(num_tokens: int, context: int, stride: int) -> list[Window]:
    """Plans the windows over one sequence.

    The sequence is a document with the end-of-document token before it, so every token of the
    document has a predecessor. A window holds at most `context + 1` tokens: the model reads all
    but the last, at most `context`. The first scores all of its tokens but the first; each
    further one scores the next `stride` tokens, or what is left.

    Args:
        num_tokens: tokens in the sequence, the one before the document included.
        context: most tokens that the model reads.
        stride: tokens that a further window scores, at most `context`.

    Returns:
        windows whose scored tokens are 1 to `num_tokens - 1`, each once, in order; every scored
        token has at least `context - stride` predecessors in its window, or all there are.
    """
    assert 1 <= stride <= context, (stride, context)
    windows: list[Window] = []
    scored = 1
    while scored < num_tokens:
        step = stride if windows else context
        end = min(scored + step, num_tokens)
        windows.append(Window(max(0, end - context - 1), end, scored))
        scored = end
    return windows
