"""Tasks: which annotations are asked, how long an answer may be, and how one answer is scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.random import RandomState

from molmo_ds.config import PromptConfig
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.eval import scores
from molmo_ds.eval.metrics.pointing import pointing_scores

Annotation = dict[str, Any]
Size = tuple[int, int]  # width, height of the picture
Score = Callable[[str, Annotation, Size], dict[str, float]]
GUESSES = 200  # constant answers tried for the chance level


@dataclass(frozen=True)
class Task:
    """A kind of question. `score(prediction, annotation, size)` gives named numbers, 1 is best."""

    name: str
    styles: tuple[str, ...]  # of the annotations that it asks
    max_new_tokens: int
    score: Score

    def chance(self, asked: Sequence[tuple[Annotation, Size]]) -> dict[str, float]:
        """What the best constant answer would score, name by name; every true answer is tried (at most GUESSES).

        `asked` holds annotations with a truth only, and at least one.
        """
        guesses = list(dict.fromkeys(true_answer(annotation, size) for annotation, size in asked))[:GUESSES]
        means = [mean([self.score(guess, *one) for one in asked]) for guess in guesses]
        return {name: max(m[name] for m in means) for name in means[0]}


def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every name over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(column) / len(column) for name, column in columns.items()}


def true_answer(annotation: Annotation, size: Size) -> str:
    """What training would teach as the answer, without its leading space."""
    formatter = PromptFormatter(PromptConfig(system_prompt="none"))
    return formatter.messages(annotation, RandomState(0), size)[-1].strip()


def has_truth(annotation: Annotation) -> bool:
    """Whether an annotation says what is right; those of splits whose answers are not public do not."""
    if annotation.get("answers"):
        return True
    return any(annotation.get(name) is not None for name in ("answer", "answer_index", "points"))


def _answers(annotation: Annotation) -> Any:
    answers = annotation.get("answers")
    answers = annotation.get("answer") if answers is None else answers
    if isinstance(answers, list | tuple):
        return [_as_text(answer) for answer in answers]
    return _as_text(answers)


def _as_text(answer: Any) -> Any:
    number = isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer)
    return str(answer) if number else answer  # as training writes it


def _short(prediction: str, annotation: Annotation, size: Size) -> dict[str, float]:
    answers = _answers(annotation)
    if isinstance(answers, str):  # vqa_score leaves a single text as it is, so that `Yes` could never be right
        answers = scores.normalise_answer(answers)
    return {"accuracy": scores.vqa_score(answers, scores.parse_answer(prediction))}


def _direct(prediction: str, annotation: Annotation, size: Size) -> dict[str, float]:
    return {"accuracy": scores.a_okvqa_score(_answers(annotation), scores.parse_answer(prediction))}


def _relaxed(prediction: str, annotation: Annotation, size: Size) -> dict[str, float]:
    got = scores.parse_answer(prediction)
    answers = scores.true_answers(_answers(annotation))
    return {
        "relaxed_correctness": float(max(scores.relaxed_correctness(answer, got) for answer in answers)),
        "exact_match": float(max(scores.exact_match(answer, got) for answer in answers)),
    }


def _anls(prediction: str, annotation: Annotation, size: Size) -> dict[str, float]:
    got = scores.parse_answer(prediction)
    answers = [answer for answer in scores.true_answers(_answers(annotation)) if answer]
    if not answers:
        raise ValueError("The true answer is empty, and no reply is near an empty text.")
    return {"anls": max(scores.anls(answer, got) for answer in answers)}


def _choice(prediction: str, annotation: Annotation, size: Size) -> dict[str, float]:
    given = annotation.get("options")
    if not isinstance(given, list | tuple) or not given:
        raise ValueError(f"The options are {given!r}; a multiple-choice question needs a list of them.")
    options = [str(option) for option in given]
    names = options if annotation.get("unlabelled") else [chr(ord("A") + i) for i in range(len(options))]
    index = annotation.get("answer_index")
    return {"accuracy": float(scores.multiple_choice_score(index, scores.parse_answer(prediction), names))}


def _count(prediction: str, annotation: Annotation, size: Size) -> dict[str, float]:
    return scores.point_count_scores(prediction, len(_points(annotation)))


def _point(prediction: str, annotation: Annotation, size: Size) -> dict[str, float]:
    if "boxes" not in annotation:
        raise ValueError("Pointing is scored by boxes: give the annotation `boxes`, one per point, in pixels.")
    scale = annotation.get("point_scale")
    x, y = (1, 1) if scale is None else (size[0] / scale, size[1] / scale)
    points = [(a * x, b * y) for a, b in _points(annotation)]
    return pointing_scores(prediction, points, annotation["boxes"], size)


def _points(annotation: Annotation) -> Sequence[tuple[float, float]]:
    points = annotation.get("points")
    if points is None:
        raise ValueError("The annotation has no `points`, which its score compares with; give it a list, maybe empty.")
    return points


_ALL = (
    Task("short_answer", ("vqa2", "coco_captioning_qa", "gqa", "tally_qa", "okvqa", "text_vqa", "st_qa"), 12, _short),
    Task("direct_answer", ("a_okvqa_da",), 12, _direct),
    Task("charts", ("chart_qa", "plot_qa", "figure_qa", "dv_qa"), 12, _relaxed),
    Task("documents", ("doc_qa", "info_qa"), 12, _anls),
    Task("multiple_choice", ("a_okvqa_mc", "ai2_diagram", "science_qa", "ai2_diagram_no_letter"), 12, _choice),
    Task("counting", ("point_count",), 192, _count),
    Task("pointing", ("pointing",), 192, _point),
)
TASKS = {task.name: task for task in _ALL}
