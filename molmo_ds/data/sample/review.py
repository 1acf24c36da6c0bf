"""Reviews a record as every training would, under any settings: used where data comes in and by the inspection."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from numpy.random import RandomState

from molmo_ds.config import PromptConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.annotation import KEYS, Annotation, alternatives, at, read_annotation
from molmo_ds.data.sample.conversation import TALKS, unread
from molmo_ds.data.sample.footage import check_footage
from molmo_ds.data.sample.pointed import NEAR, Scene, holds_points
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.sample.question import TEMPLATES
from molmo_ds.data.sample.record import (
    Record,
    annotations,
    check_pictures,
    first_size,
    is_video,
)
from molmo_ds.data.sample.tree import check_places
from molmo_ds.data.sample.turns import Conversation

SCORED = {"boxes", "masks"}  # regions of the points, which only scoring reads
_ANSWERS = ("text", "inline_points", "points", "point_groups", "tracks", "answer", "answers")
# what is learnt is the first that is there
_IN_PLACE = ("messages", *_ANSWERS)
FORMATTERS = {  # by whether only Molmo2's format can say the answer
    html: PromptFormatter(
        PromptConfig(system_prompt="none", pointing_format="html-v2" if html else "percent")
    )
    for html in (False, True)
}


@dataclass
class Review:
    """Notes on records that can be used; counts of annotations, and of each key that is not read."""

    unanswered: int = 0  # nothing is learnt of them: they only ask
    without_style: int = 0
    without_question: int = 0  # though an answer is learnt
    outside: int = 0  # moments of tracks after the end of the video (or its clip)
    unread: Counter[str] = field(default_factory=Counter)
    unlearnt: Counter[tuple[str, str]] = field(
        default_factory=Counter
    )  # of two answers, and the one learnt

    def merge(self, other: "Review") -> None:
        """Add the counts of another."""
        self.unanswered += other.unanswered
        self.without_style += other.without_style
        self.without_question += other.without_question
        self.outside += other.outside
        self.unread += other.unread
        self.unlearnt += other.unlearnt

    def sentences(self) -> list[str]:
        """The counts in words, those above 0."""
        out = []
        if self.unanswered:
            out.append(f"{self.unanswered} annotations without an answer, which training skips")
        if self.without_question:
            out.append(f"{self.without_question} annotations with an answer, but no question")
        if self.without_style:
            out.append(
                f"{self.without_style} annotations without a style, for prompts.system_prompt=none only"
            )
        if self.outside:
            out.append(
                f"{self.outside} moments of tracks after the end of their video, at which no frame can be shown"
            )
        out += [
            f"{count} annotations whose '{key}' is not learnt, since they have '{learnt}'"
            for (key, learnt), count in self.unlearnt.items()
        ]
        return out + [
            f"{count} annotations with a key that nobody reads, '{key}'"
            for key, count in self.unread.items()
        ]

    def add(self, record: Record) -> None:
        """Examine one record (with `sizes`); BadSample says in a sentence why no training can use it."""
        given = annotations(record)
        if not given:
            raise BadSample("The sample has no annotations; give it at least one.")
        video = is_video(record)
        pictures = 1 if video else len(record["images"])
        ends = check_footage(record) if video else None
        scene = Scene(record.get("sizes") or [])
        size = first_size(record)
        choices = []
        for i, value in enumerate(given):
            try:
                choices.append([self._speak(one, size, scene, ends) for one in alternatives(value)])
            except BadSample as error:
                raise BadSample(f"{at(i, len(given))}{error}") from None
        # any of an annotation's alternatives may be used with the others
        for number in range(max(map(len, choices))):
            chosen = [several[number % len(several)] for several in choices]
            check_places(chosen, pictures)
            check_pictures(record, [conversation.pictures for conversation in chosen])

    def _speak(
        self,
        value: dict[str, Any],
        size: tuple[int, int] | None,
        scene: Scene,
        ends: float | None,
    ) -> Conversation:
        """The conversation of one annotation, which is counted; `ends` is the last second of its video."""
        annotation = read_annotation(value)
        asks = is_question(annotation)
        formatter = FORMATTERS[_needs_html(annotation)]
        texts = formatter.messages(annotation, RandomState(0), size, asks, scene)
        self.unanswered += asks
        if ends is not None:
            self.outside += sum(moment.time >= ends + NEAR for moment in annotation.tracks or ())
        self.without_style += not annotation.style
        self.without_question += not asks and lacks_question(annotation)
        of_turns = {f"{key} of a turn" for name in TALKS for key in unread(value.get(name))}
        self.unread.update(value.keys() - KEYS - SCORED | of_turns)
        self.unlearnt.update(unlearnt(annotation))
        return Conversation(texts, 1.0, annotation.pictures)


def lacks_question(annotation: Annotation) -> bool:
    """Whether an answer to a question is learnt without one; captions and points need none."""
    told = annotation.messages or annotation.text is not None or holds_points(annotation)
    return not (told or annotation.question or annotation.options or annotation.style in TEMPLATES)


def unlearnt(annotation: Annotation) -> list[tuple[str, str]]:
    """Answers that another one, named second, takes the place of; people's `answers` may stand next to the `answer`."""
    given = [name for name in _IN_PLACE if getattr(annotation, name) is not None]
    return [(name, given[0]) for name in given[1:] if given[0] not in ("answer", "inline_points")]


def _needs_html(annotation: Annotation) -> bool:
    return annotation.point_groups is not None or annotation.tracks is not None


def is_question(annotation: Annotation) -> bool:
    """Whether the annotation only asks, as those of test splits do, and has no answer to learn."""
    if annotation.messages is not None:
        return len(annotation.messages) % 2 == 1
    chosen = annotation.options is not None and annotation.answer_index is not None
    return (
        not chosen
        and not any(getattr(annotation, name) for name in _ANSWERS)
        and not holds_points(annotation)
    )
