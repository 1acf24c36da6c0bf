"""A stand-in for a Replica without a network: it says the user's words again, so that every answer is known."""

import time
from collections.abc import Sequence

from molmo_ds.infer.question import Piece, Question


class Parrot:
    """Answers with the tokens of the prompt's branch, its frame included, then the end token.

    Where the temperature is not 0 the words are turned round by the seed and the choice, so that both can be seen.

    Args:
        seconds: how long a step takes.
        positions: that it knows; an answer ends there.
    """

    def __init__(self, eos: int, seconds: float = 0.0, positions: int = 10_000):
        self.eos = eos
        self.seconds = seconds
        self.positions = positions
        self.rows: dict[str, tuple[Question, list[int]]] = {}
        self.asked: list[Question] = []
        self.dropped: list[str] = []

    @property
    def busy(self) -> bool:
        """Whether there is something to step."""
        return bool(self.rows)

    def admit(self, questions: Sequence[Question]) -> None:
        """Take questions; ValueError for a prompt that is longer than the positions."""
        for question in questions:
            if len(question.prompt.input_ids) > self.positions:
                raise ValueError(
                    f"The prompt has {len(question.prompt.input_ids)} tokens; make it shorter."
                )
            self.asked.append(question)
            self.rows[question.name] = question, list(question.begun)

    def step(self) -> list[Piece]:
        """One token for every question."""
        time.sleep(self.seconds)
        return [self._next(name) for name in list(self.rows)]

    def drop(self, name: str) -> None:
        """Forget a question."""
        self.dropped.append(name)
        del self.rows[name]

    def _next(self, name: str) -> Piece:
        question, said = self.rows[name]
        words = answer_of(question, self.eos)
        token = words[len(said)]
        said.append(token)
        end = "stop" if token == self.eos else None
        if end is None and len(said) == question.options.max_new_tokens:
            end = "length"
        if end is None and len(question.prompt.input_ids) + len(said) >= self.positions:
            end = "context"
        if end:
            del self.rows[name]
        top = tuple((token + i, -0.5 - i) for i in range(question.options.logprobs))
        return Piece(name=name, token=token, log_probability=-0.5, top=top, end=end)


def answer_of(question: Question, eos: int) -> list[int]:
    """All that the parrot will say."""
    prompt = question.prompt
    words = prompt.input_ids[prompt.branch_ids > 0].tolist()
    if question.options.temperature:
        turn = (question.options.seed + int(question.draws or 0)) % len(words)
        words = words[turn:] + words[:turn]
    return [*words, eos]
