"""What a user asks about an annotation, and its answer where the way of asking decides it."""

from dataclasses import dataclass
from string import ascii_uppercase

from numpy.random import RandomState

from molmo_ds.config import PromptConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.annotation import Annotation
from molmo_ds.data.sample.pointed import Scene, answer_by_points, follow_point
from molmo_ds.data.sample.styles import SHORT_ANSWERS, TRACK_OF_POINT, TRACK_STYLE
from molmo_ds.data.wording import options as worded
from molmo_ds.data.wording.pictures import POINTING, SEVERAL, STEP_BY_STEP
from molmo_ds.data.wording.pictures import TEMPLATES as OF_PICTURES
from molmo_ds.data.wording.videos import SHORT_ANSWER, TRACK_AT_TWO, VIDEO_TEMPLATES

TEMPLATES = OF_PICTURES | {
    style: sentences for style, sentences in VIDEO_TEMPLATES.items() if style not in SHORT_ANSWERS
}
STEPS = "_exp"  # in a style whose answers explain themselves
P_ALL_PICTURES = 0.5  # a question about points in several pictures means all, else it names some


@dataclass(frozen=True)
class Asked:
    """A question, and its answer where another way of asking would need another one."""

    question: str
    answer: str | None = None


def ask(
    style: str,
    annotation: Annotation,
    config: PromptConfig,
    rng: RandomState,
    scene: Scene,
    inference: bool,
) -> Asked:
    """The question of an annotation, drawn where its style leaves it open.

    Args:
        style: of training; that of the annotation may be one of evaluation.

    Raises BadSample where the annotation lacks what the question needs.
    """
    question = annotation.question
    drawing = config.prompt_templates != "none"
    if question is None and style in TEMPLATES:
        if drawing and style == TRACK_OF_POINT:
            return _track_of_point(annotation, config, rng, scene, inference)
        if drawing and style in SEVERAL:
            return _in_several(style, annotation, config, rng, scene)
        sentences = TEMPLATES[style]
        label = label_of(style, annotation) if "{label}" in sentences[0] else ""
        if not drawing:
            return Asked(label)
        if style == TRACK_STYLE:
            nowhere = annotation.tracks is not None and not annotation.tracks
            return Asked(_track(annotation.track_fps, label, rng, always_said=nowhere))
        return Asked(sentences[rng.randint(len(sentences))].format(label=label))
    question = question or ""
    if question and drawing and annotation.style in SHORT_ANSWERS and not annotation.options:
        question = SHORT_ANSWER[rng.randint(len(SHORT_ANSWER))].format(question=question)
    explained = bool(question) and drawing and STEPS in style
    if explained:
        question = STEP_BY_STEP.format(question=question)
    if annotation.options is None:
        return Asked(question)
    if config.prompt_templates == "uber_model_v2" and not explained:
        return _choice(question, annotation, annotation.options, rng, inference)
    return Asked(_with_options(question, annotation.options, bool(annotation.unlabelled)))


def label_of(style: str, annotation: Annotation) -> str:
    """What points show, in small letters where a picture is pointed at; BadSample if it is not said."""
    if annotation.label is not None:
        kept = style.startswith(("video_", "multi_image_"))
        return annotation.label if kept else annotation.label.lower()
    if annotation.question is not None:
        return annotation.question
    raise BadSample("An annotation with points has neither label nor question; give it a label.")


def letters(options: list[str]) -> str:
    """The names of options, A to Z; BadSample for more of them."""
    if not 1 <= len(options) <= len(ascii_uppercase):
        raise BadSample(f"{len(options)} options cannot be lettered A to Z; mark them unlabelled.")
    return ascii_uppercase[: len(options)]


def _with_options(question: str, options: list[str], unlabelled: bool) -> str:
    if unlabelled:
        return question + "\n" + "\n".join(options) + "\n"
    lines = [f"{name}: {option}\n" for name, option in zip(letters(options), options)]
    return question + "\n" + "".join(lines)


def _choice(
    question: str, annotation: Annotation, options: list[str], rng: RandomState, inference: bool
) -> Asked:
    """A choice as Molmo2 is asked it."""
    named = not annotation.unlabelled
    if named:
        letters(options)
    right = annotation.answer_index
    if inference or rng.random_sample() < worded.P_RELEASED:
        text, answers = worded.released(question, options, named)
    else:
        # a blank option has nothing to answer but its name
        blank = named and right is not None and not options[right].strip()
        text, answers = worded.drawn(question, options, rng, 1.0 if blank else worded.P_NAMED)
    return Asked(text, None if right is None else answers[right])


def _track(fps: float | None, label: str, rng: RandomState, always_said: bool) -> str:
    """A request for tracks; two points a second are what is meant where it says nothing, and so half the time.

    Args:
        always_said: as the reference does where there is nothing to track.
    """
    if fps is None or (fps == 2 and not always_said and rng.random_sample() < 0.5):
        return TRACK_AT_TWO[rng.randint(len(TRACK_AT_TWO))].format(label=label)
    sentences = TEMPLATES[TRACK_STYLE]
    return sentences[rng.randint(len(sentences))].format(label=label, fps=f"{fps:g}")


def _in_several(
    style: str, annotation: Annotation, config: PromptConfig, rng: RandomState, scene: Scene
) -> Asked:
    """A request for points in all pictures or in some of them, and the answer, which has its groups in their order."""
    label = label_of(style, annotation)
    numbers = list(range(1, len(scene.sizes) + 1))
    images = "all images"
    sentences = SEVERAL[style]
    if len(numbers) > 1 and rng.random_sample() >= P_ALL_PICTURES:
        numbers = [numbers[i] for i in rng.permutation(len(numbers))]
        numbers = numbers[: rng.randint(1, len(numbers) + 1)]
        images = ", ".join(f"image_{number}" for number in numbers)
    elif style == "multi_image_pointing" and rng.random_sample() < 0.5:
        sentences = POINTING
    question = sentences[rng.randint(len(sentences))].format(label=label, images=images)
    if annotation.point_groups is None:
        return Asked(question)
    given = {group.image or 1: group for group in annotation.point_groups if group.points}
    shown = [given[number] for number in numbers if number in given]
    kept = annotation.model_copy(update={"point_groups": shown})
    return Asked(question, answer_by_points(style, kept, label, scene, config.pointing_format))


def _track_of_point(
    annotation: Annotation,
    config: PromptConfig,
    rng: RandomState,
    scene: Scene,
    inference: bool,
) -> Asked:
    """A request to follow a point, and the track after it."""
    if annotation.track_fps is None:
        raise BadSample("A question that names a point to follow needs track_fps; give it.")
    label = label_of(TRACK_OF_POINT, annotation)
    draws = None if inference else rng
    start, track = follow_point(annotation, label, scene, config.pointing_format, draws)
    sentences = TEMPLATES[TRACK_OF_POINT]
    sentence = sentences[rng.randint(len(sentences))]
    return Asked(sentence.format(start=start, fps=f"{annotation.track_fps:g}"), track)
