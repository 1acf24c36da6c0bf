"""A request not to point, before questions how many there are whose answers hold no points.

Without it a model that also learns to count by pointing would learn both answers to one question. The rule is that of
allenai/molmo 793fa38, olmo/data/pixmo_datasets.py: a question of one line that begins with "how many", in any case,
gets a sentence that is drawn at each visit; the list is as long, the words are our own.
"""

import re

from numpy.random import RandomState

from molmo_ds.data.sample.annotation import Annotation

_HOW_MANY = re.compile("how many.*")
REQUESTS = (
    "No points please: ",
    "No points please: ",
    "no points:\n",
    "No points:\n",
    "Without points:\n",
    "Leave points out: ",
    "Leave points out: ",
    "WITHOUT POINTS\n",
    "no points plase\n",
    "Without any points:\n ",
    "Without pointing\n",
    "Give no points. ",
    "Please do without points. ",
    "Keep points out of your answer. ",
    "I want no points in this answer. ",
    "Do without points here:\n",
    "Your reply should hold no points. ",
    "Skip the points. ",
    "Leave the points away. ",
    "Please leave points out.\n\n",
    "Please leave points out.\n\n",
    "Reply without any points. ",
    "Reply without pointing at things:\n",
    "make no poinst: ",
    "Give no points. ",
    "Give no points\n",
    "without points\n\n",
    "In words only: ",
    "Reply to this in words, not in points: ",
    "In plain words, no piont. ",
    "in words only: ",
    "words are enough, leave points out\n",
)


def asks_how_many(question: str) -> bool:
    """Whether a question is one that gets the request."""
    return _HOW_MANY.fullmatch(question.lower()) is not None


def with_request(annotation: Annotation, rng: RandomState) -> Annotation:
    """The annotation with the requests that its `no_pointing` asks for, one draw for each question how many."""
    if not annotation.no_pointing:
        return annotation
    changed: dict[str, object] = {"no_pointing": None}
    if annotation.question is not None:
        changed["question"] = _ask(annotation.question, rng)
    if annotation.messages is not None:
        changed["messages"] = [
            _ask(text, rng) if number % 2 == 0 else text
            for number, text in enumerate(annotation.messages)
        ]
    return annotation.model_copy(update=changed)


def _ask(question: str, rng: RandomState) -> str:
    return REQUESTS[rng.randint(len(REQUESTS))] + question if asks_how_many(question) else question
