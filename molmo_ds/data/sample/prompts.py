"""Annotations to messages: what the user says and what the assistant should answer, in Molmo's own formats.

The order of random draws is the reference's: one of several annotations and requests not to point, for all
annotations; template, answer, system prompt, for each annotation in turn; then the order of annotations.
"""

from collections import Counter
from string import ascii_uppercase
from typing import Any

from numpy.random import RandomState

from molmo_ds.config import PromptConfig, SourceConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.annotation import (
    INLINE_POINT,
    Annotation,
    alternatives,
    at,
    read_annotation,
)
from molmo_ds.data.sample.no_pointing import with_request
from molmo_ds.data.sample.points import format_count, format_points, to_percent
from molmo_ds.data.sample.templates import LONG_CAPTION, POINT_COUNT, POINTING, STEP_BY_STEP
from molmo_ds.data.sample.turns import Conversation, speak

# styles that only evaluation uses
SAME_AS = {"eval_short_answer": "vqa2", "eval_multiple_choice": "a_okvqa_mc"}
# spoken as a user would: rarely with a style
DEMO_STYLES = ("point_count", "pointing", "user_qa", "long_caption", "cosyn_point", "text_sft")
BARE_STYLES = ("android_control", "demo")  # never with a style
STEPS = "_exp"  # in a style whose answers explain themselves
TEMPLATES = {"long_caption": LONG_CAPTION, "pointing": POINTING, "point_count": POINT_COUNT}


class PromptFormatter:
    """Annotations to conversations under one PromptConfig, with the style and weight of one source."""

    def __init__(self, config: PromptConfig, source: SourceConfig | None = None):
        self.config = config
        self.source = source or SourceConfig()

    def conversations(
        self,
        annotations: list[Annotation | dict[str, Any]],
        rng: RandomState,
        size: tuple[int, int] | None = None,
    ) -> list[Conversation]:
        """All annotations of one sample, to be learnt; `size` is the (first) picture's (width, height).

        Of an annotation with `one_of` one is drawn. Each annotation's weight (1 unless it says otherwise) is multiplied
        by the source's and divided by sqrt(annotations) under root_subsegments.
        Raises BadSample where an annotation is not what it must be, or lacks what its style needs.
        """
        if not annotations:
            raise BadSample("The sample has no annotations; give it at least one.")
        share = len(annotations) ** -0.5 if self.config.root_subsegments else 1.0
        ready = []
        for i, value in enumerate(annotations):
            try:
                several = alternatives(value)
                value = several[rng.randint(len(several))] if len(several) > 1 else several[0]
                annotation = with_request(read_annotation(value), rng)
                if self.source.style:
                    annotation = annotation.model_copy(update={"style": self.source.style})
                ready.append(annotation)
            except BadSample as error:
                raise BadSample(f"{at(i, len(annotations))}{error}") from None
        out = []
        for i, annotation in enumerate(ready):
            try:
                messages = self.messages(annotation, rng, size)
            except BadSample as error:
                raise BadSample(f"{at(i, len(annotations))}{error}") from None
            weight = 1.0 if annotation.weight is None else annotation.weight
            weight *= share * self.source.weight
            out.append(Conversation(messages, weight, annotation.pictures))
        if self.config.shuffle_messages and len(out) > 1:
            rng.shuffle(out)
        return out

    def messages(
        self,
        annotation: Annotation | dict[str, Any],
        rng: RandomState,
        size: tuple[int, int] | None = None,
        inference: bool = False,
    ) -> list[str]:
        """Texts of one annotation, the user's first; for inference the last answer is left to the model.

        Raises BadSample where the annotation is not what it must be, or has nothing to learn.
        """
        annotation = with_request(read_annotation(annotation), rng)
        style = annotation.style
        if not style and self.config.system_prompt != "none":
            raise BadSample(
                "An annotation has no style, which the system prompt needs; give it one, such as user_qa."
            )
        style = SAME_AS.get(style, style) or ""
        if annotation.messages is not None:
            turns = list(annotation.messages)
            turns = turns[: len(turns) - 1 + len(turns) % 2] if inference else turns
            if not turns or (not inference and len(turns) % 2):
                raise BadSample(
                    "'messages' must alternate user and assistant and end with the assistant."
                )
        else:
            turns = [self._question(style, annotation, rng)]
            if not inference:
                turns.append(self._answer(style, annotation, rng, size))
        if not all(turn.strip() for turn in turns[1::2]):
            raise BadSample(
                "An answer is empty, so there is nothing to learn; leave the annotation out."
            )
        answer = turns[1] if len(turns) > 1 and not inference else None
        turns[0] = self._with_system_prompt(style, turns[0], answer, rng)
        config = self.config
        return [
            speak(i, turn, config.message_format, config.always_start_with_space)
            for i, turn in enumerate(turns)
        ]

    def _question(self, style: str, annotation: Annotation, rng: RandomState) -> str:
        question = annotation.question
        if question is None and style in TEMPLATES:
            label = self._label(annotation) if style != "long_caption" else ""
            if self.config.prompt_templates == "none":
                return label
            templates = TEMPLATES[style]
            return templates[rng.randint(len(templates))].format(label=label)
        question = question or ""
        if question and STEPS in style and self.config.prompt_templates == "uber_model":
            question = STEP_BY_STEP.format(question=question)
        options = annotation.options
        if options is None:
            return question
        if annotation.unlabelled:
            return question + "\n" + "\n".join(options) + "\n"
        return (
            question
            + "\n"
            + "".join(f"{name}: {option}\n" for name, option in zip(_letters(options), options))
        )

    def _answer(
        self, style: str, annotation: Annotation, rng: RandomState, size: tuple[int, int] | None
    ) -> str:
        if annotation.text is not None:
            return annotation.text
        if annotation.inline_points is not None:
            return _place_points(annotation, size)
        if annotation.points is not None:
            points = to_percent(annotation.points, annotation.point_scale, size)
            label = self._label(annotation)
            return (
                format_count(points, label)
                if style == "point_count"
                else format_points(points, label)
            )
        if annotation.answer is not None:
            if INLINE_POINT in annotation.answer:
                raise BadSample(
                    f"The answer has {INLINE_POINT}, but there are no inline_points; give them."
                )
            return annotation.answer
        if annotation.answers:
            return _most_frequent(annotation.answers, rng)
        if annotation.options is not None and annotation.answer_index is not None:
            letters = None if annotation.unlabelled else _letters(annotation.options)
            if annotation.answer_index >= len(annotation.options):
                raise BadSample(
                    f"'answer_index' {annotation.answer_index} points at none of 0 options."
                )
            return (letters or annotation.options)[annotation.answer_index]
        raise BadSample(
            f"An annotation of style '{style}' has nothing to learn: give it text, answer, answers, points, or options"
            " with answer_index."
        )

    def _label(self, annotation: Annotation) -> str:
        if annotation.label is not None:
            return annotation.label.lower()
        if annotation.question is not None:
            return annotation.question
        raise BadSample(
            "An annotation with points has neither label nor question; give it a label."
        )

    def _with_system_prompt(
        self, style: str, question: str, answer: str | None, rng: RandomState
    ) -> str:
        kind = self.config.system_prompt
        if kind == "style":
            prefix = style + ":"
        elif kind == "demo_or_style":
            if style in BARE_STYLES or (style in DEMO_STYLES and rng.random() > 0.1):
                return question
            prefix = style + ":"
        elif kind == "style_and_length":
            prefix = f"{style} {self._length(answer, rng)}:"
        else:
            return question
        return f"{prefix} {question}" if question else prefix

    def _length(self, answer: str | None, rng: RandomState) -> str:
        """Length of the answer, in units of 15 characters and blurred; empty where it is not to be told."""
        if answer is None:
            wanted = self.config.default_inference_len
            return "" if wanted is None else str(wanted)
        if rng.random() <= 0.1:
            return ""
        return str((len(answer) + int(rng.normal(scale=25))) // 15)


def _letters(options: list[str]) -> str:
    if not 1 <= len(options) <= len(ascii_uppercase):
        raise BadSample(f"{len(options)} options cannot be lettered A to Z; mark them unlabelled.")
    return ascii_uppercase[: len(options)]


def _most_frequent(answers: list[str], rng: RandomState) -> str:
    counts = Counter(answers)
    best = [answer for answer, count in counts.items() if count == max(counts.values())]
    return best[0] if len(best) == 1 else best[rng.randint(len(best))]


def _place_points(annotation: Annotation, size: tuple[int, int] | None) -> str:
    groups = annotation.inline_points or []
    parts = (annotation.answer or "").split(INLINE_POINT)
    if len(parts) != len(groups) + 1:
        raise BadSample(
            f"The answer has {len(parts) - 1} {INLINE_POINT} and inline_points {len(groups)} entries."
        )
    out = parts[0]
    for group, after in zip(groups, parts[1:]):
        points = to_percent(group.points, annotation.point_scale, size)
        out += (
            format_points(points, group.alt, group.alt if group.text is None else group.text)
            + after
        )
    return out
