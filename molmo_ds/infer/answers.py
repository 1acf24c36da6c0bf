"""Answers to a stream of questions, with the slots of a replica kept full."""

from collections.abc import Iterable, Iterator
from itertools import islice

from molmo_ds.infer.question import Answer, Question
from molmo_ds.infer.replica import Replica


def answer(replica: Replica, questions: Iterable[Question]) -> Iterator[Answer]:
    """Yield every answer in the order in which they end; every rank of the replica calls it with equal questions.

    Questions are taken from the iterator while fewer wait than there are slots; neighbours about equal pictures share a
    prefill. Stop strings are the caller's.
    """
    source = iter(questions)
    size = sum(slots.count for slots in replica.slots)
    tokens: dict[str, list[int]] = {}
    sums: dict[str, float] = {}
    more = True
    while more or replica.busy:
        while more and replica.waiting < size:
            taken = list(islice(source, size))
            more = len(taken) == size
            replica.admit(taken)
            tokens |= {question.name: list(question.begun) for question in taken}
            sums |= {question.name: 0.0 for question in taken}
        for piece in replica.step():
            sums[piece.name] += piece.log_probability
            if piece.end != "stop":
                tokens[piece.name].append(piece.token)
            if piece.end:
                ids = tuple(tokens.pop(piece.name))
                yield Answer(
                    name=piece.name,
                    token_ids=ids,
                    log_probability=sums.pop(piece.name),
                    end=piece.end,
                )
    replica.close()
