"""What the adapters share: a checkpoint that answers a kit's questions, each in the style that it was trained on."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.sample.styles import FREE
from molmo_ds.eval.clients.client import Ask
from molmo_ds.eval.subject import Checkpoint

log = logging.getLogger(__name__)
STYLES = {  # beginning of a kit's task, in small letters and digits -> the style of training
    "textvqa": "text_vqa",
    "chartqa": "chart_qa",
    "docvqa": "doc_qa",
    "infovqa": "info_qa",
    "infographicvqa": "info_qa",
    "ai2d": "ai2_diagram",
    "scienceqa": "science_qa",
    "vqav2": "vqa2",
    "okvqa": "okvqa",
    "stvqa": "st_qa",
    "gqa": "gqa",
    "mmmu": "a_okvqa_mc",
    "realworldqa": "vqa2",
}
INSTRUCTIONS = (  # that kits add for models without styles, and that no training question has
    "Answer the question using a single word or phrase.",
    "Answer the question with a single word or phrase.",
    "Answer the question with a single word.",
    "Answer with the option's letter from the given choices directly.",
    "Please select the correct answer from the options above.",
)


def style_of(task: str) -> str:
    """The style of a kit's task; FREE where training had nothing like it.

    Free-form questions lose by a style that is not theirs (VLMEvalKit issue 648).
    """
    plain = "".join(letter for letter in task.lower() if letter.isalnum())
    return next((style for name, style in STYLES.items() if plain.startswith(name)), FREE)


def question_of(text: str, style: str) -> str:
    """A kit's text as training has it: for a style, without the kit's instructions."""
    if style != FREE:
        for instruction in INSTRUCTIONS:
            text = text.replace(f"\n{instruction}", "").replace(instruction, "")
    return text


class Kit:
    """A checkpoint, or a folder of weights, as a kit asks it.

    Args:
        style: of all questions; "auto" = by the task's name.
        max_crops: of a picture; None = as in training. Published figures of documents and charts have 36.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        style: str = "auto",
        max_crops: int | None = None,
        batch: int = 16,
        tokenizer: str | None = None,
        device: str | None = None,
        precision: Any = None,
    ):
        words = Path(tokenizer) if tokenizer else None
        subject = Checkpoint(Path(checkpoint), Path("."), batch, words, device, precision)
        self.client = subject.client(max_crops)
        self.free = PromptFormatter(subject.config.data.prompts).free_style
        self.style = style
        self.asked: list[Ask] = []

    def add(
        self, task: str, turns: Sequence[str], pictures: Sequence[Any], max_new_tokens: int
    ) -> None:
        """Queue a question: the turns of a chat, the user's first and last, and its pictures."""
        style = style_of(task) if self.style == "auto" else self.style
        said = [question_of(turn, style) if i % 2 == 0 else turn for i, turn in enumerate(turns)]
        style = self.free if style == FREE else style
        annotation = (
            {"style": style, "question": said[0]}
            if len(said) == 1
            else {"style": style, "messages": said}
        )
        number = len(self.asked)
        self.asked.append(
            Ask(
                id=str(number),
                pictures=tuple(map(encoded, pictures)),
                annotation=annotation,
                seed=number,
                max_new_tokens=max_new_tokens,
            )
        )

    def answers(self) -> list[tuple[str, int]]:
        """(text, tokens) for each question queued since the last call, in order.

        One that cannot be asked, such as a picture that cannot be read, is said and has the text "", which a kit counts
        as wrong.
        """
        asked = self.asked
        self.asked = []
        found = {reply.id: reply for reply in self.client.replies(asked)}
        for reply in found.values():
            if reply.failed:
                log.warning("Question %s has no answer: %s", reply.id, reply.end)
        return [(found[ask.id].text, found[ask.id].token_count) for ask in asked]


def encoded(picture: Any) -> bytes:
    """The bytes of a picture file: of a path, of bytes, of a PIL picture (written as PNG)."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | Path):
        return Path(picture).read_bytes()
    if not isinstance(picture, Image.Image):
        raise ValueError(
            f"A picture is {type(picture).__name__}; Molmo sees pictures only, as paths, bytes or PIL's."
        )
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "PNG")
    return stream.getvalue()
