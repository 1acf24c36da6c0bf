"""Annotations to messages: what the user says and what the assistant should answer, in Molmo's own formats.

The order of random draws is the reference's: one of several annotations and requests not to point, for all
annotations; template, answer, system prompt, for each annotation in turn; then the order of annotations.
"""

from collections import Counter
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
from molmo_ds.data.sample.conversation import PLACE
from molmo_ds.data.sample.pointed import (
    Scene,
    answer_by_points,
    holds_points,
    place_points,
    unshown,
)
from molmo_ds.data.sample.question import ask, label_of, letters
from molmo_ds.data.sample.styles import (
    BARE_STYLES,
    CHOICE_STYLES,
    DEMO_STYLES,
    FREE,
    SAME_AS,
    SPOKEN_STYLES,
)
from molmo_ds.data.sample.turns import Conversation, speak
from molmo_ds.data.wording.no_pointing import with_request


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
        scene: Scene | None = None,
    ) -> list[Conversation]:
        """All annotations of one sample, to be learnt; `size` is the (first) picture's (width, height).

        Of an annotation with `one_of` one is drawn. Each annotation's weight (1 unless it says otherwise) is multiplied
        by the source's and divided by sqrt(annotations) under root_subsegments; a source's token_weight replaces what
        root_subsegments and root_length make of it.
        Raises BadSample where an annotation is not what it must be, or lacks what its style needs.
        """
        if not annotations:
            raise BadSample("The sample has no annotations; give it at least one.")
        config = self.config
        token_weight = self.source.token_weight
        share = len(annotations) ** -0.5 if config.root_subsegments else 1.0
        share = share if token_weight is None else token_weight
        ready = []
        for i, value in enumerate(annotations):
            try:
                several = alternatives(value)
                value = several[rng.randint(len(several))] if len(several) > 1 else several[0]
                annotation = self._requested(read_annotation(value), rng)
                if self.source.style:
                    annotation = annotation.model_copy(update={"style": self.source.style})
                ready.append(annotation)
            except BadSample as error:
                raise BadSample(f"{at(i, len(annotations))}{error}") from None
        out = []
        for i, annotation in enumerate(ready):
            try:
                messages = self.messages(annotation, rng, size, scene=scene)
            except BadSample as error:
                raise BadSample(f"{at(i, len(annotations))}{error}") from None
            weight = 1.0 if annotation.weight is None else annotation.weight
            conversation = Conversation(
                messages,
                weight * share * self.source.weight,
                annotation.pictures,
                chat=config.message_format == "chat",
                root_length=config.root_length and token_weight is None,
                last_answer_only=config.last_answer_only,
                root_branches=config.root_subsegments and token_weight is None,
                unshown=unshown(annotation, scene) if scene else 0,
            )
            out.append(conversation)
        if config.shuffle_messages and len(out) > 1:
            rng.shuffle(out)
        return out

    def messages(
        self,
        annotation: Annotation | dict[str, Any],
        rng: RandomState,
        size: tuple[int, int] | None = None,
        inference: bool = False,
        scene: Scene | None = None,
    ) -> list[str]:
        """Texts of one annotation, the user's first; for inference the last answer is left to the model.

        `scene` holds the sizes of all pictures, or the times of a video's frames.
        Raises BadSample where the annotation is not what it must be, or has nothing to learn.
        """
        annotation = self._requested(read_annotation(annotation), rng)
        style = annotation.style
        if not style and self.config.system_prompt != "none":
            raise BadSample(
                "An annotation has no style, which the system prompt needs; give it one, such as user_qa."
            )
        style = SAME_AS.get(style, style) or ""
        style = style.removeprefix("eval_") if style.startswith("eval_multi_image_") else style
        if annotation.messages is not None:
            turns = list(annotation.messages)
            turns = turns[: len(turns) - 1 + len(turns) % 2] if inference else turns
            if not turns or (not inference and len(turns) % 2):
                raise BadSample(
                    "'messages' must alternate user and assistant and end with the assistant."
                )
        else:
            scene = scene or Scene([size] if size else [])
            asked = ask(style, annotation, self.config, rng, scene, inference)
            turns = [asked.question]
            if not inference:
                turns.append(self._answer(style, annotation, rng, scene, asked.answer))
        if not all(turn.strip() for turn in turns[1::2]):
            raise BadSample(
                "An answer is empty, so there is nothing to learn; leave the annotation out."
            )
        answer = None if inference else turns[-1]
        turns[0] = self._with_system_prompt(style, turns[0], answer, rng)
        config = self.config
        shown = size is not None or (scene is not None and scene.times is not None)
        if config.image_last and shown and PLACE not in turns[0]:
            turns[0] += PLACE
        return [
            speak(i, turn, config.message_format, config.always_start_with_space)
            for i, turn in enumerate(turns)
        ]

    @property
    def free_style(self) -> str:
        """The style of a question that names none: it is asked as it stands."""
        return "user_qa" if self.config.system_prompt.endswith("_v2") else FREE

    def _requested(self, annotation: Annotation, rng: RandomState) -> Annotation:
        """With requests not to point, by the rule of the model whose form of points is learnt."""
        return with_request(annotation, rng, later=self.config.pointing_format != "percent")

    def _answer(
        self,
        style: str,
        annotation: Annotation,
        rng: RandomState,
        scene: Scene,
        chosen: str | None,
    ) -> str:
        """The answer to learn; `chosen` is that of options or of a track as they were asked for."""
        if annotation.text is not None:
            return annotation.text
        if annotation.inline_points is not None:
            return place_points(annotation, scene, self.config.pointing_format)
        if holds_points(annotation):
            if chosen is not None:
                return chosen
            label = label_of(style, annotation)
            return answer_by_points(style, annotation, label, scene, self.config.pointing_format)
        if annotation.answer is not None:
            if INLINE_POINT in annotation.answer:
                raise BadSample(
                    f"The answer has {INLINE_POINT}, but there are no inline_points; give them."
                )
            return annotation.answer
        if annotation.answers:
            return _most_frequent(annotation.answers, rng)
        if chosen is not None:
            return chosen
        if annotation.options is not None and annotation.answer_index is not None:
            names = None if annotation.unlabelled else letters(annotation.options)
            if annotation.answer_index >= len(annotation.options):
                raise BadSample(
                    f"'answer_index' {annotation.answer_index} points at none of 0 options."
                )
            return (names or annotation.options)[annotation.answer_index]
        raise BadSample(
            f"An annotation of style '{style}' has nothing to learn: give it text, answer, answers, points, or options"
            " with answer_index."
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
        elif kind == "demo_or_style_v2":
            if style in SPOKEN_STYLES or style in CHOICE_STYLES:
                return question
            prefix = style + ":"
        elif kind == "style_and_length_v2":
            pointed = style in ("pointing", "point_count", "cosyn_point")
            length = "" if pointed else self._length(answer, rng)
            prefix = f"{style} {length}:" if length else style + ":"
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


def _most_frequent(answers: list[str], rng: RandomState) -> str:
    counts = Counter(answers)
    best = [answer for answer, count in counts.items() if count == max(counts.values())]
    return best[0] if len(best) == 1 else best[rng.randint(len(best))]
