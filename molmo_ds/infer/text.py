"""The text of an answer whose tokens come one by one."""

from collections.abc import Callable

Decode = Callable[[list[int]], str]


def cut(text: str, stop: tuple[str, ...]) -> str:
    """`text` up to the first stop string."""
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


class TextStream:
    """Tokens to pieces of text; joined, the pieces are the whole answer, cut before a stop string.

    A piece waits while it may be the beginning of a stop string or of a character of several bytes.

    Args:
        decode: ids to text.
        stop: texts that end the answer.
    """

    def __init__(self, decode: Decode, stop: tuple[str, ...] = ()) -> None:
        self.decode = decode
        self.stop = stop
        self.tokens: list[int] = []
        self.text = ""  # so far, with what waits
        self.shown = 0  # characters of it that were given out
        self.stopped = False

    def add(self, token: int) -> str:
        """What can be shown now that `token`, not the end token, has come; nothing after a stop string."""
        if self.stopped:
            return ""
        self.tokens.append(token)
        whole = self.decode(self.tokens)
        self.text = cut(whole, self.stop)
        self.stopped = len(self.text) < len(whole)
        if self.stopped:
            return self.finish()
        return self._show(len(self.text.rstrip("\ufffd")) - self._waiting())

    def finish(self) -> str:
        """What has waited until the end."""
        return self._show(len(self.text))

    def _waiting(self) -> int:
        """Characters at the end that may begin a stop string."""
        longest = 0
        for stop in self.stop:
            for length in range(1, len(stop)):
                if self.text.endswith(stop[:length]):
                    longest = max(longest, length)
        return longest

    def _show(self, ready: int) -> str:
        piece = self.text[self.shown : ready]
        self.shown = max(self.shown, ready)
        return piece
