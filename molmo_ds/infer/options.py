"""How the tokens of an answer are chosen."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How tokens are chosen, and where an answer ends at the latest.

    The random numbers of a token come from the seed, the answer's name and the token's place in it (see
    infer/sampling.py), so that an answer does not depend on what is computed together with it. ValueError for a value
    out of its range.
    """

    max_new_tokens: int = 192
    temperature: float = 0.0  # 0 = the likeliest token
    top_k: int = 0  # 0 = all
    top_p: float = 1.0  # the smallest set of words with this share
    beams: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()  # a row ends where one of these appears
    logprobs: int = 0  # likeliest words that are named with every token

    def __post_init__(self):
        for name, least in (("max_new_tokens", 1), ("beams", 1), ("top_k", 0), ("logprobs", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; it is a whole number of at least {least}.")
        if not _is_number(self.temperature) or self.temperature < 0:
            raise ValueError(
                f"temperature is {self.temperature!r}; it is a finite number and not negative."
            )
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise ValueError(f"top_p lies above 0 and up to 1, and is {self.top_p!r}.")
        if (
            isinstance(self.seed, bool)
            or not isinstance(self.seed, int)
            or not -(2**63) <= self.seed < 2**63
        ):
            raise ValueError(f"seed is {self.seed!r}; it is a whole number of 64 bits.")
        if isinstance(self.stop, str) or not all(
            isinstance(text, str) and text for text in self.stop
        ):
            raise ValueError(
                f"stop is {self.stop!r}; it holds texts, and none that is empty, which every answer has."
            )
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("Beam search does not sample; use beams=1 or temperature=0.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


GREEDY = Options()
