"""Tasks: which annotations are asked, how long an answer may be, and how one answer is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.random import RandomState

from molmo_ds.config import PromptConfig
from molmo_ds.data.prompts import PromptFormatter
from molmo_ds.eval import scores
from molmo_ds.eval.pointing import pointing_scores

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
        """What the best constant answer would score, name by name; every true answer is tried (at most GUESSES)."""
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


def _answers(annotation: Annotation) -> Any:
    return annotation.get("answers", annotation.get("answer"))


def _first(annotation: Annotation) -> str:
    answers = _answers(annotation)
    return answers if isinstance(answers, str) else answers[0]


def _short(prediction: str, annotation: Annotation, size: Size) -> dict[str, float]:
    return {"accuracy": scores.vqa_score(_answers(annotation), scores.parse_answer(prediction))}


def _direct(prediction: str, annotation: Annotation, size: Size) -> dict[str, float]:
    return {"accuracy": scores.a_okvqa_score(_answers(annotation), scores.parse_answer(prediction))}


def _relaxed(prediction: str, annotation: Annotation, size: Size) -> dict[str, float]:
    answer, target = scores.parse_answer(prediction), _first(annotation)
    return {
        "relaxed_correctness": float(scores.relaxed_correctness(target, answer)),
        "exact_match": float(scores.exact_match(target, answer)),
    }


def _anls(prediction: str, annotation: Annotation, size: Size) -> dict[str, float]:
    answers, got = _answers(annotation), scores.parse_answer(prediction)
    return {"anls": max(scores.anls(a, got) for a in ([answers] if isinstance(answers, str) else answers))}


def _choice(prediction: str, annotation: Annotation, size: Size) -> dict[str, float]:
    options = [str(option) for option in annotation["options"]]
    names = options if annotation.get("unlabelled") else [chr(ord("A") + i) for i in range(len(options))]
    picked = scores.select_mc_option(scores.parse_answer(prediction), names)
    return {"accuracy": float(picked == annotation["answer_index"])}


def _count(prediction: str, annotation: Annotation, size: Size) -> dict[str, float]:
    return scores.point_count_scores(prediction, len(annotation["points"]))


def _point(prediction: str, annotation: Annotation, size: Size) -> dict[str, float]:
    if "boxes" not in annotation:
        raise ValueError("Pointing is scored by boxes: give the annotation `boxes`, one per point, in pixels.")
    scale = annotation.get("point_scale")
    x, y = (1, 1) if scale is None else (size[0] / scale, size[1] / scale)
    points = [(a * x, b * y) for a, b in annotation["points"]]
    return pointing_scores(prediction, points, annotation["boxes"], size)


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
