from hypothesis import given
from hypothesis import strategies as st

from mtron_eval.windows import Window, plan_windows


@given(st.integers(0, 300), st.integers(1, 40), st.data())
def test_every_token_is_scored_once_with_enough_before_it(num_tokens, context, data):
    stride = data.draw(st.integers(1, context))
    scored = []
    for window in plan_windows(num_tokens, context, stride):
        assert 0 <= window.begin < window.first_scored < window.end <= num_tokens
        assert window.end - window.begin <= context + 1
        for token in range(window.first_scored, window.end):
            assert token - window.begin >= min(token, context - stride)
            scored.append(token)
    assert scored == list(range(1, num_tokens))


def test_a_document_that_fits_is_one_window():
    assert plan_windows(17, context=16, stride=8) == [Window(0, 17, 1)]


def test_a_longer_one_advances_by_the_stride():
    assert plan_windows(30, context=16, stride=8) == [
        Window(0, 17, 1),
        Window(8, 25, 17),
        Window(13, 30, 25),
    ]
