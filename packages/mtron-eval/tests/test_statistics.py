import numpy as np
import pytest

from mtron_eval.statistics import ratio_of_totals


def test_equal_sizes_give_the_standard_error_of_the_mean():
    values = np.random.default_rng(0).normal(3.0, 1.0, 50)
    ratio = ratio_of_totals(values, np.full(50, 4.0))
    assert ratio.value == pytest.approx(values.mean() / 4, rel=1e-12)
    assert ratio.standard_error == pytest.approx(values.std(ddof=1) / 50**0.5 / 4, rel=1e-12)


def test_unequal_sizes_agree_with_the_bootstrap():
    rng = np.random.default_rng(1)
    sizes = rng.integers(50, 500, 200).astype(float)
    totals = sizes * rng.normal(2.0, 0.5, 200)
    draws = rng.integers(0, 200, (4000, 200))
    bootstrap = (totals[draws].sum(1) / sizes[draws].sum(1)).std()
    assert ratio_of_totals(totals, sizes).standard_error == pytest.approx(bootstrap, rel=0.05)


def test_one_document_has_no_standard_error():
    assert ratio_of_totals([6.0], [3.0]).standard_error is None
