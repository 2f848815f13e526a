"""Estimates with standard errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """A ratio of two totals.

    Attributes:
        value: the ratio.
        standard_error: of the ratio over the documents; None for fewer than two.
    """

    value: float
    standard_error: float | None


def ratio_of_totals(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Estimates `sum(numerators) / sum(denominators)` for a population of documents.

    The documents are taken as a random sample and weigh by their size; the standard error is
    that of the ratio estimator, linearized (Cochran, Sampling Techniques, section 6.4).

    Args:
        numerators: one per document.
        denominators: one per document; their sum is positive.
    """
    total = math.fsum(denominators)
    value = math.fsum(numerators) / total
    count = len(numerators)
    if count < 2:
        return Ratio(value, None)
    squares = math.fsum(
        (numerator - value * denominator) ** 2
        for numerator, denominator in zip(numerators, denominators, strict=True)
    )
    return Ratio(value, math.sqrt(squares * count / (count - 1)) / total)
