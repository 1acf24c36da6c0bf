"""Questions and pictures to model inputs, the way the released processor is called.

Shapes: B texts, T tokens, n crops, P patches per crop, Q pooled patches per crop.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.image_utils import load_image

from molmo_ds.hub.remote.image_preprocessing_molmo import MolmoImageProcessor

IMAGE_TOKENS = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>")  # order of the layout's numbers
INPUTS = ("input_ids", "attention_mask", "images", "image_input_idx", "image_masks")


class MolmoProcessor(ProcessorMixin):
    """An image processor and a tokenizer that holds the image tokens."""

    attributes = ["image_processor", "tokenizer"]  # this and the two names below are for transformers 4
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        # chat_template is named here because transformers reloads only what __init__ names
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def _get_arguments_from_pretrained(cls, path: str, *_: Any, **options: Any) -> list[Any]:
        # by hand, since transformers would look the class names up among its own
        return [MolmoImageProcessor.from_pretrained(path, **options), AutoTokenizer.from_pretrained(path, **options)]

    @property
    def special_token_ids(self) -> dict[str, int]:
        """Image token -> id."""
        return {token: self.tokenizer.convert_tokens_to_ids(token) for token in IMAGE_TOKENS}

    def get_tokens_input(
        self, prompt: str, message_format: str | None = "role", always_start_with_space: bool = True
    ) -> list[int]:
        """Ids of a question, spoken by the user unless message_format is none."""
        if message_format not in (None, "none", "role"):
            raise ValueError(f"message_format is '{message_format}'; use 'role' or 'none'.")
        text = f"User: {prompt} Assistant:" if message_format == "role" else prompt
        return self.tokenizer.encode(" " + text if always_start_with_space else text, add_special_tokens=False)

    def process(
        self,
        text: str | None = None,
        images: Any = None,
        *,
        tokens: Sequence[int] | None = None,
        images_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        max_crops: int | None = None,
        message_format: str | None = "role",
        always_start_with_space: bool = True,
        style: str | None = None,
        system_prompt: str | None = None,
        sequence_length: int | None = None,
        padding: Any = None,
        truncation: Any = None,
        add_special_tokens: Any = None,
        return_tensors: Any = None,
    ) -> dict[str, Tensor]:
        """One question about any number of pictures, which come first -> tensors without a batch dimension.

        Args:
            images: a picture or a list of pictures, PIL or uint8 [height, width, 3].
            tokens: ids to use instead of a text, without the leading one that begins a document.
            images_kwargs, text_kwargs: max_crops; message_format and always_start_with_space, as in a call of vLLM or
                VLMEvalKit. style to return_tensors are what the released processor accepts and does not use.

        Returns:
            input_ids int64 [T]; with pictures also images float32 [n, P, patch * patch * 3], image_input_idx int64
            [n, Q] (-1 = nowhere) and image_masks float32 [n, P].
        """
        options = {"message_format": message_format, "always_start_with_space": always_start_with_space}
        options |= {k: v for k, v in (text_kwargs or {}).items() if k in options}
        if tokens is None:
            tokens = self.get_tokens_input(text or "", **options)
        words = np.array([*self.special_token_ids.values()])
        start = self.tokenizer.bos_token_id
        ids = [np.array([self.tokenizer.eos_token_id if start is None else start])]
        made, places = [], []
        pictures = [] if images is None else images if isinstance(images, list | tuple) else [images]
        for picture in pictures:
            crops = self.image_processor.crops(picture, (images_kwargs or {}).get("max_crops", max_crops))
            where = crops.layout.positions
            places.append(np.where(where >= 0, where + sum(map(len, ids)), -1))
            ids.append(words[crops.layout.tokens])
            made.append(crops)
        out = {"input_ids": torch.from_numpy(np.concatenate([*ids, np.array(tokens, dtype=np.int64)]))}
        if made:
            out["images"] = torch.cat([crops.images for crops in made])
            out["image_input_idx"] = torch.from_numpy(np.concatenate(places))
            out["image_masks"] = torch.cat([crops.masks for crops in made])
        return out

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        *,
        return_tensors: str | None = "pt",
        padding: Any = None,
        images_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        max_crops: int | None = None,
        message_format: str | None = "role",
    ) -> BatchFeature:
        """One text, or a list of them, as a batch padded on the left, ready for `generate`.

        Args:
            images: for one text a picture or a list of pictures; for a list of texts one such entry per text.
        """
        if return_tensors not in ("pt", None):
            raise ValueError(f"return_tensors is '{return_tensors}'; only 'pt' is supported.")
        if isinstance(images, str) or (isinstance(images, list) and images and isinstance(images[0], str)):
            images, text = text, images  # called as processor(text, images), the order of older releases
        texts = [text] if isinstance(text, str) or text is None else text
        pictures = [images] if isinstance(text, str) or text is None else images or [None] * len(texts)
        if len(texts) != len(pictures):
            raise ValueError(
                f"There are {len(texts)} texts and {len(pictures)} entries of pictures; give one per text."
            )
        rows = [
            self.process(
                one, picture, images_kwargs=images_kwargs, text_kwargs=text_kwargs, max_crops=max_crops,
                message_format=message_format,
            )
            for one, picture in zip(texts, pictures)
        ]  # fmt: skip
        return BatchFeature(collate(rows, self.tokenizer.pad_token_id or 0))

    def apply_chat_template(
        self,
        conversation: list[Any],
        chat_template: str | None = None,
        tokenize: bool = False,
        return_dict: bool = True,
        return_tensors: str | None = "pt",
        **_: Any,
    ) -> Any:
        """A conversation (or a list of them) in transformers' form as text, or with `tokenize` as model inputs.

        Its pictures (PIL, arrays, paths or URLs) go to the beginning, where the model expects them.
        """
        many = isinstance(conversation[0], list)
        talks = conversation if many else [conversation]
        template = chat_template or self.chat_template or self.tokenizer.chat_template
        texts = [self.tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False) for talk in talks]
        if not tokenize:
            return texts if many else texts[0]
        parts = [
            [part for turn in talk if not isinstance(turn["content"], str) for part in turn["content"]]
            for talk in talks
        ]
        found = [[part.get("image", part.get("url")) for part in row if part["type"] == "image"] for row in parts]
        pictures = [[load_image(one) if isinstance(one, str) else one for one in row] for row in found]
        inputs = self(text=texts, images=pictures, message_format="none", return_tensors=return_tensors)
        return inputs if return_dict else inputs["input_ids"]

    def decode(self, *args: Any, **options: Any) -> str:
        """As the tokenizer's, special tokens skipped unless asked for."""
        return self.tokenizer.decode(*args, **({"skip_special_tokens": True} | options))

    def batch_decode(self, *args: Any, **options: Any) -> list[str]:
        """As the tokenizer's, special tokens skipped unless asked for."""
        return self.tokenizer.batch_decode(*args, **({"skip_special_tokens": True} | options))

    @property
    def model_input_names(self) -> list[str]:
        return list(INPUTS)


def collate(rows: list[dict[str, Tensor]], pad: int) -> dict[str, Tensor]:
    """Rows as `process` makes them -> tensors [B, ...]: text padded on the left, crops that pad are -1 throughout."""
    tokens = max(len(row["input_ids"]) for row in rows)
    lengths = [tokens - len(row["input_ids"]) for row in rows]
    out = {
        "input_ids": torch.stack([F.pad(r["input_ids"], (n, 0), value=pad) for r, n in zip(rows, lengths)]),
        "attention_mask": torch.stack([torch.arange(tokens) >= n for n in lengths]).long(),
    }
    seen = next((row for row in rows if "images" in row), None)
    if seen is None:
        return out
    crops = max(len(row["images"]) for row in rows if "images" in row)
    for name in ("images", "image_input_idx", "image_masks"):
        parts = []
        for row, n in zip(rows, lengths):
            part = row.get(name, seen[name][:0])
            if name == "image_input_idx":
                part = torch.where(part >= 0, part + n, part)
            parts.append(F.pad(part, (0, 0) * (part.ndim - 1) + (0, crops - len(part)), value=-1))
        out[name] = torch.stack(parts)
    return out
