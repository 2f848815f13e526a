"""Perplexity and bits per byte of texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mtron_eval.config import EvalConfig
from mtron_eval.documents import DataFile, Document
from mtron_eval.results import Metric, TaskResult
from mtron_eval.scoring import Progress, Scorer, score_in_batches
from mtron_eval.statistics import ratio_of_totals
from mtron_eval.windows import Window, plan_windows

_LARGEST_EXPONENT = 600.0


@dataclass(frozen=True)
class _Score:
    """How probable the model found one document."""

    document: Document
    num_tokens: int
    num_bytes: int
    nll_nats: float


class Perplexity:
    """Scores every token of every document, given the tokens before it.

    The first token of a document is predicted from the end-of-document token, as in training;
    that token itself is not scored. Documents longer than the context are cut into overlapping
    windows (`mtron_eval.windows`). Documents without text are counted and skipped.
    """

    name: ClassVar[str] = "perplexity"
    version: ClassVar[int] = 1
    description: ClassVar[str] = "Perplexity per token and bits per byte of texts."

    def __init__(self, config: EvalConfig, data: Sequence[DataFile]) -> None:
        documents = [document for file in data for document in file.documents]
        self._documents = [document for document in documents if document.text]
        self._num_empty = len(documents) - len(self._documents)
        assert config.context is not None
        assert config.stride is not None
        self._context, self._stride = config.context, config.stride
        self._batch_size = config.batch_size

    def run(self, scorer: Scorer, progress: Progress | None = None) -> TaskResult:
        """Measures the model.

        Raises:
            ValueError: if the tokenizer has no end-of-document token, or the model gives a
                probability that is not a number.
        """
        scores = self._score_documents(scorer, progress)
        domains = dict.fromkeys(score.document.domain for score in scores)
        return TaskResult(
            name=self.name,
            version=self.version,
            settings={"context": self._context, "stride": self._stride},
            counts={
                "documents": len(scores),
                "empty_documents": self._num_empty,
                "tokens": sum(score.num_tokens for score in scores),
                "bytes": sum(score.num_bytes for score in scores),
            },
            metrics=_metrics(scores),
            groups={
                domain: _metrics([s for s in scores if s.document.domain == domain])
                for domain in domains
                if domain is not None
            },
            documents=[_row(score) for score in scores],
        )

    def _score_documents(self, scorer: Scorer, progress: Progress | None) -> list[_Score]:
        sequences = self._encode(scorer)
        windows = [
            (ids, window)
            for ids in sequences
            for window in plan_windows(len(ids), self._context, self._stride)
        ]
        pieces = [ids[window.begin : window.end] for ids, window in windows]
        sums = np.empty(len(pieces))
        for index, values in score_in_batches(scorer, pieces, self._batch_size, progress):
            window = windows[index][1]
            # Entry i of a window's scores belongs to its token i + 1.
            sums[index] = values[window.first_scored - window.begin - 1 :].sum()
        return self._collect(sequences, [window for _, window in windows], sums)

    def _collect(
        self, sequences: Sequence[list[int]], windows: Sequence[Window], sums: np.ndarray
    ) -> list[_Score]:
        """Adds up the windows of each document; a document's first window begins to score at 1."""
        starts = [index for index, window in enumerate(windows) if window.first_scored == 1]
        ends = [*starts[1:], len(windows)]
        return [
            _Score(
                document,
                num_tokens=len(ids) - 1,
                num_bytes=document.num_bytes,
                nll_nats=_negative_log_likelihood(document, sums[start:end]),
            )
            for document, ids, start, end in zip(
                self._documents, sequences, starts, ends, strict=True
            )
        ]

    def _encode(self, scorer: Scorer) -> list[list[int]]:
        """Token ids of each document, behind the end-of-document token."""
        eos_id = scorer.tokenizer.eos_id
        if eos_id is None:
            raise ValueError(
                "tokenizer: has no end-of-document token, from which the first token of a "
                "document is predicted; name it in tokenizer_config.json (eos_token)"
            )
        encoded = scorer.tokenizer.encode_batch([document.text for document in self._documents])
        for document, ids in zip(self._documents, encoded, strict=True):
            if not len(ids):
                raise ValueError(
                    f"{document.name}: the tokenizer makes no tokens of {document.text[:20]!r}; "
                    "remove this document"
                )
        return [[eos_id, *ids] for ids in encoded]


def _negative_log_likelihood(document: Document, sums: np.ndarray) -> float:
    # fsum is exact, so the batches in which windows were scored leave no trace.
    total = -math.fsum(map(float, sums))
    if not math.isfinite(total):
        raise ValueError(
            f"{document.name}: the model gives a probability that is no positive number, got a "
            f"log-likelihood of {-total}; check its weights for NaN and infinity"
        )
    return total


def _metrics(scores: Sequence[_Score]) -> dict[str, Metric]:
    nats = [score.nll_nats for score in scores]
    per_token = ratio_of_totals(nats, [score.num_tokens for score in scores])
    per_byte = ratio_of_totals(nats, [score.num_bytes for score in scores])
    perplexity = _exp(per_token.value)
    error = per_token.standard_error
    byte_error = per_byte.standard_error
    return {
        "nll_per_token": Metric(per_token.value, error, "nats", higher_is_better=False),
        "perplexity": Metric(
            perplexity,
            # First order: the derivative of exp.
            None if error is None else perplexity * error,
            "per token",
            higher_is_better=False,
        ),
        "bits_per_byte": Metric(
            per_byte.value / math.log(2),
            None if byte_error is None else byte_error / math.log(2),
            "bits",
            higher_is_better=False,
        ),
    }


def _row(score: _Score) -> dict[str, Any]:
    document = score.document
    return {
        "source": document.source,
        "line": document.line,
        "path": document.path,
        "domain": document.domain,
        "tokens": score.num_tokens,
        "bytes": score.num_bytes,
        "nll_nats": score.nll_nats,
        "perplexity": _exp(score.nll_nats / score.num_tokens),
        "bits_per_byte": score.nll_nats / score.num_bytes / math.log(2),
    }


def _exp(value: float) -> float:
    """The exponential, bounded so that a broken model does not overflow the report."""
    return math.exp(min(value, _LARGEST_EXPONENT))
