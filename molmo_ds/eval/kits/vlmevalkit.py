"""molmo_ds in VLMEvalKit: `register(NAME, CHECKPOINT)` before its run.py's `main`; see docs/guides/kits.md.

The kit's own class `molmo` asks exported folders through transformers, without a KV cache, about the first picture
only; this one asks a checkpoint of any strategy, about all pictures, with training's own prompts.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from vlmeval.config import supported_VLM
from vlmeval.vlm.base import BaseModel

from molmo_ds.eval.kits.answering import FREE, Kit, style_of


def register(
    name: str,
    checkpoint: str,
    style: str = "auto",
    max_crops: int | None = None,
    max_new_tokens: int = 200,
    device: str | None = None,
) -> None:
    """Add a checkpoint to the models that VLMEvalKit knows, as `name`; its weights are read when it is asked."""
    supported_VLM[name] = functools.partial(
        Molmo,
        checkpoint,
        style=style,
        max_crops=max_crops,
        max_new_tokens=max_new_tokens,
        device=device,
    )


class Molmo(BaseModel):
    """A checkpoint that answers, greedily, one question at a time as the kit asks; arguments as in `Kit`."""

    INSTALL_REQ = False
    INTERLEAVE = True  # questions may have several pictures

    def __init__(
        self,
        checkpoint: str,
        style: str = "auto",
        max_crops: int | None = None,
        max_new_tokens: int = 200,
        device: str | None = None,
    ):
        super().__init__()
        self.kit = Kit(checkpoint, style=style, max_crops=max_crops, batch=1, device=device)
        self.max_new_tokens = max_new_tokens

    def use_custom_prompt(self, dataset: str | None) -> bool:
        """Whether training had questions like these; all others keep the kit's own prompt."""
        return style_of(dataset or "") != FREE

    def build_prompt(
        self, line: Mapping[str, Any], dataset: str | None = None
    ) -> list[dict[str, str]]:
        """The pictures of a row, its question and its options, as training has them."""
        options = [
            (name, line[name]) for name in ascii_uppercase if isinstance(line.get(name), str)
        ]
        text = line["question"]
        if options:
            text += "\n" + "".join(f"{name}: {option}\n" for name, option in options)
        pictures = [{"type": "image", "value": path} for path in self.dump_image(line, dataset)]
        return [*pictures, {"type": "text", "value": text}]

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """The answer to a message of pictures and texts. Raises ValueError for a video."""
        if any(part["type"] == "video" for part in message):
            raise ValueError(
                "molmo_ds answers about pictures in VLMEvalKit, not about videos; leave the data set out."
            )
        text = "\n".join(part["value"] for part in message if part["type"] == "text")
        pictures = [part["value"] for part in message if part["type"] == "image"]
        self.kit.add(dataset or "", [text], pictures, self.max_new_tokens)
        [(answer, _)] = self.kit.answers()
        return answer
