from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtron_infer.detokenize import Detokenizer, StopMatcher


def pieces(tokenizer, ids, before=()):
    detokenizer = Detokenizer(tokenizer.decode, before)
    return [detokenizer.push(token) for token in ids] + [detokenizer.flush()]


@given(text=st.text(max_size=80))
def test_text_comes_whole_and_in_whole_characters(tokenizer, text):
    found = pieces(tokenizer, tokenizer.encode(text))
    assert "".join(found) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in found)


@given(ids=st.lists(st.integers(0, 299), max_size=120))
def test_any_tokens_give_what_decoding_them_at_once_gives(tokenizer, ids):
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_bytes_that_never_become_a_character_do_not_wait_for_the_end(tokenizer):
    continuation_byte = tokenizer.encode("日")[-1]
    assert tokenizer.decode([continuation_byte]) == "\ufffd"
    found = pieces(tokenizer, [continuation_byte] * 200)
    assert "".join(found[:-1]).count("\ufffd") >= 190
    assert "".join(found) == "\ufffd" * 200


def test_a_long_text_is_decoded_in_short_windows(tokenizer):
    lengths = []

    def decode(ids):
        lengths.append(len(ids))
        return tokenizer.decode(ids)

    text = "Grüße 日本語 😀 " * 40
    detokenizer = Detokenizer(decode)
    assert "".join(detokenizer.push(token) for token in tokenizer.encode(text)) == text
    assert max(lengths) < 40


def test_a_decoder_that_drops_the_first_space_gets_the_words_before():
    words = ["hello", " big", " world"]

    def decode(ids):
        return "".join(words[i] for i in ids).removeprefix(" ")

    assert "".join([(d := Detokenizer(decode, [0])).push(1), d.push(2), d.flush()]) == " big world"


def char_by_char(text, stops):
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


small_text = st.text("ab.", max_size=30)


@example(text="ab.", stops=["ab.", "b"], cuts=set())
@given(
    text=small_text,
    stops=st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3),
    cuts=st.sets(st.integers(0, 30)),
)
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(text, stops, cuts):
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    expected, expected_match = char_by_char(text, stops)
    matcher, shown = StopMatcher(stops), ""
    for begin, end in pairwise(edges):
        shown += matcher.push(text[begin:end])
        assert expected.startswith(shown), "nothing of a stop string is shown"
        if matcher.matched:
            break
    if not matcher.matched:
        shown += matcher.flush()
    assert (shown, matcher.matched) == (expected, expected_match)


@pytest.mark.parametrize(("text", "shown"), [("abcab", "abc"), ("abcx", "abcx"), ("a", "")])
def test_only_what_may_become_a_stop_string_is_held_back(text, shown):
    assert StopMatcher(["abx"]).push(text) == shown
