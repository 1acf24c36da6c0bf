"""The text of an answer in pieces: joined it is the answer, cut before a stop string, and no piece is taken back."""

import itertools

import pytest

from molmo_ds.infer.text import TextStream, cut

LETTERS = "abcdefghij"


def letters(ids: list[int]) -> str:
    return "".join(LETTERS[i] for i in ids)


def in_bytes(ids: list[int]) -> str:
    return bytes(ids).decode(errors="replace")


def pieces(stream: TextStream, tokens: list[int]) -> list[str]:
    return [*(stream.add(token) for token in tokens), stream.finish()]


def test_every_token_is_shown_at_once_without_stop_strings() -> None:
    assert pieces(TextStream(letters), [0, 1, 2]) == ["a", "b", "c", ""]


def test_what_may_begin_a_stop_string_waits() -> None:
    stream = TextStream(letters, ("bcd",))
    assert pieces(stream, [0, 1, 2, 4, 1]) == ["a", "", "", "bce", "", "b"]
    assert not stream.stopped


def test_nothing_comes_after_a_stop_string() -> None:
    stream = TextStream(letters, ("bc", "zz"))
    assert pieces(stream, [0, 1, 2, 3]) == ["a", "", "", "", ""]
    assert stream.stopped


def test_half_a_character_waits() -> None:
    sent = list("né€".encode())
    assert pieces(TextStream(in_bytes), sent) == ["n", "", "é", "", "", "€", ""]
    assert pieces(TextStream(in_bytes), sent[:2]) == ["n", "", "\ufffd"]


@pytest.mark.parametrize("stop", [(), ("ab",), ("aab", "ba"), ("abab",)])
def test_pieces_joined_are_the_answer(stop: tuple[str, ...]) -> None:
    for tokens in itertools.product(range(2), repeat=6):
        whole = letters(list(tokens))
        stream = TextStream(letters, stop)
        assert "".join(pieces(stream, list(tokens))) == cut(whole, stop)
        assert stream.stopped == (cut(whole, stop) != whole)
