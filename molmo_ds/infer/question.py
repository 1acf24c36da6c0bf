"""What a replica is asked, and what each of its steps gives back."""

import functools
from dataclasses import dataclass

import numpy as np

from molmo_ds.batch import Sample
from molmo_ds.infer.options import Options


@dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt and how it is to be answered."""

    name: str  # unique among those in flight
    # one conversation that ends where the answer begins, as SampleBuilder.prompt makes it
    prompt: Sample
    options: Options = Options()
    # tokens of the answer that were given out before: they count as its first
    begun: tuple[int, ...] = ()
    # names the answer's random numbers together with the seed; by default `name`
    draws: str | None = None

    @property
    def length(self) -> int:
        """Tokens that are known."""
        return len(self.prompt.input_ids) + len(self.begun)

    @functools.cached_property
    def prefix(self) -> int:
        """Tokens before the branch."""
        # by numpy, for which a few tokens are cheap
        return int(np.count_nonzero(self.prompt.branch_ids.numpy() == 0))

    @functools.cached_property
    def reach(self) -> int:
        """Positions up to that of the last token that is known."""
        return self.prompt.reach + len(self.begun)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one step gave to one question."""

    name: str
    token: int
    log_probability: float
    # (token, log-probability) of the likeliest, as many as Options.logprobs
    top: tuple[tuple[int, float], ...] = ()
    # "stop": the end token, "length": max_new_tokens, "context": no further position
    end: str | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """All pieces of one question."""

    name: str
    token_ids: tuple[int, ...]  # begun ones first, without the end token
    log_probability: float  # sum over the tokens that were added, the end token included
    end: str
