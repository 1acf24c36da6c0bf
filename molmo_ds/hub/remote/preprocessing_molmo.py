"""Questions and pictures to model inputs, the way the released processor is called.

Shapes: B texts, T tokens, n crops, P patches per crop, Q pooled patches per crop.
"""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

from molmo_ds.data.sample.tree import ask, prefix
from molmo_ds.data.sample.turns import speak, spoken
from molmo_ds.data.tokens import IMAGE_TOKENS, Words
from molmo_ds.hub.remote.batches_molmo import collate
from molmo_ds.hub.remote.chat_molmo import pictures_of, render, turns_of
from molmo_ds.hub.remote.config_molmo import copy_code
from molmo_ds.hub.remote.image_preprocessing_molmo import MolmoImageProcessor
from molmo_ds.hub.remote.inputs_molmo import (
    Rendered,
    check_return_tensors,
    cut_ids,
    known_options,
    pair,
)

INPUTS = ("input_ids", "attention_mask", "images", "image_input_idx", "image_masks")


class MolmoProcessor(ProcessorMixin):
    """An image processor and a tokenizer that holds the image tokens.

    Words, pixels and turns are made by the files that training uses: special names that a user types are plain text.
    `message_format` and `always_start_with_space` are how the model was trained to be asked.
    """

    attributes = [
        "image_processor",
        "tokenizer",
    ]  # this and the two names below are for transformers 4
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        message_format: str = "role",
        always_start_with_space: bool = True,
    ) -> None:
        # chat_template is named here because transformers reloads only what __init__ names
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.message_format = message_format
        self.always_start_with_space = always_start_with_space
        self._words: tuple[int, int, Words] | None = None

    @classmethod
    def _get_arguments_from_pretrained(cls, path: str, *_: Any, **options: Any) -> list[Any]:
        # by hand, since transformers would look the class names up among its own
        for name in (
            "dtype",
            "torch_dtype",
        ):  # of the model; VLMEvalKit gives it, and it would be saved
            options.pop(name, None)
        return [
            MolmoImageProcessor.from_pretrained(path, **options),
            AutoTokenizer.from_pretrained(path, **options),
        ]

    def to_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
        """The content of processor_config.json."""
        return {
            key: value
            for key, value in super().to_dict(*args, **options).items()
            if key != "_words"
        }

    def save_pretrained(self, save_directory: str | Path, *args: Any, **options: Any) -> list[str]:
        """Save as transformers does, and the code that older versions leave out."""
        files = super().save_pretrained(save_directory, *args, **options)
        copy_code(save_directory)
        return files

    @property
    def special_token_ids(self) -> dict[str, int]:
        """Image token -> id."""
        return {token: self.tokenizer.convert_tokens_to_ids(token) for token in IMAGE_TOKENS}

    @property
    def words(self) -> Words:
        """The tokenizer as training uses it: a copy, which transformers' own calls do not change."""
        state = (id(self.tokenizer), len(self.tokenizer))
        if self._words is None or self._words[:2] != state:
            end = self.tokenizer.eos_token_id
            start = self.tokenizer.bos_token_id
            fast = FastTokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
            first = self.special_token_ids[IMAGE_TOKENS[0]]
            self._words = (*state, Words(fast, first, end if start is None else start, end))
        return self._words[2]

    def get_tokens_input(
        self,
        prompt: str,
        message_format: str | None = None,
        always_start_with_space: bool | None = None,
    ) -> list[int]:
        """Ids of a question as the user's turn, or as it is if message_format is none."""
        messages = self._messages(prompt, message_format, always_start_with_space)
        return ask(self.words, messages, [], sys.maxsize).input_ids[1:]

    def process(
        self,
        text: str | None = None,
        images: Any = None,
        *,
        tokens: Sequence[int] | None = None,
        images_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        max_crops: int | None = None,
        message_format: str | None = None,
        always_start_with_space: bool | None = None,
        style: str | None = None,
        system_prompt: str | None = None,
        sequence_length: int | None = None,
        padding: Any = None,
        truncation: Any = None,
        max_length: int | None = None,
        add_special_tokens: Any = None,
        return_tensors: Any = None,
    ) -> dict[str, Tensor]:
        """One question about any number of pictures, which come first -> tensors without a batch dimension.

        Args:
            text: a question, or what `apply_chat_template` wrote. Where it names as many places (<|image|>) as there
                are pictures, they go there, as in training.
            images: a picture or a list of pictures, of every kind that `read_picture` takes.
            tokens: ids to use instead of a text, without the leading one that begins a document.
            images_kwargs, text_kwargs: max_crops; message_format and always_start_with_space, as in a call of vLLM or
                VLMEvalKit. style, system_prompt, sequence_length, padding, add_special_tokens and return_tensors are
                what the released processor accepts and does not use.
            message_format: none for a text that is whole as it is; by default the model's own.
            truncation, max_length: with truncation, a text is cut at max_length tokens.

        Returns:
            input_ids int64 [T]; with pictures also images float32 [n, P, patch * patch * 3], image_input_idx int64
            [n, Q] (-1 = nowhere) and image_masks float32 [n, P].
        """
        options = {
            "message_format": message_format,
            "always_start_with_space": always_start_with_space,
        }
        options |= known_options(text_kwargs, "text_kwargs", options)
        most = known_options(images_kwargs, "images_kwargs", ("max_crops",)).get(
            "max_crops", max_crops
        )
        texts, pictures = pair(text, images)
        if len(texts) > 1:
            raise ValueError(
                f"process() takes one text, not {len(texts)}; call the processor itself for a batch."
            )
        row = texts[0]
        made = [self.image_processor.crops(picture, most) for picture in pictures[0]]
        layouts = [crops.layout for crops in made]
        shown = [(layout.tokens + self.words.vocab_size).tolist() for layout in layouts]
        if isinstance(row, Rendered) and row.pictures and row.pictures != len(made):
            raise ValueError(
                f"The conversation has places for {row.pictures} pictures, and {len(made)} are given."
            )
        tokens = row.tokens if tokens is None and isinstance(row, Rendered) else tokens
        if tokens is None:
            tree = ask(self.words, self._messages(row, **options), shown, sys.maxsize)
            ids = tree.input_ids
            starts = tree.starts
        else:
            before, starts = prefix(self.words, shown)
            ids = [*before, *(int(token) for token in tokens)]
        ids = cut_ids(ids, truncation, max_length, starts, layouts)
        out = {"input_ids": torch.tensor(ids)}
        if made:
            places = [
                np.where(one.positions >= 0, one.positions + s, -1)
                for one, s in zip(layouts, starts)
            ]
            out["images"] = torch.cat([crops.images for crops in made])
            out["image_input_idx"] = torch.from_numpy(np.concatenate(places))
            out["image_masks"] = torch.cat([crops.masks for crops in made])
        return out

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        *,
        audios: Any = None,
        return_tensors: str | None = "pt",
        padding: Any = None,
        padding_side: str | None = None,
        truncation: Any = None,
        max_length: int | None = None,
        add_special_tokens: Any = None,
        images_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        max_crops: int | None = None,
        message_format: str | None = None,
        always_start_with_space: bool | None = None,
    ) -> BatchFeature:
        """One text, or a list of them, as a batch padded on the left, ready for `generate`.

        Args:
            images: for one text a picture or a list of pictures; for a list of texts one such entry (or None) per text.
                One text in a list may have its pictures in a plain list.
            videos, audio, audios: None, or empty as some callers write it.
            padding_side: left (for generating) or right.
            add_special_tokens: of no effect: the token that begins a document is always there.

        The other arguments are those of `process`. Raises ValueError, in one sentence that says what was given and
        what is taken, for anything else.
        """
        for name, others in (("videos", videos), ("audio", audio), ("audios", audios)):
            if others is not None and not (isinstance(others, list | tuple) and len(others) == 0):
                raise ValueError(f"This model takes texts and pictures; leave {name} out.")
        check_return_tensors(return_tensors)
        if padding_side not in ("left", "right", None):
            raise ValueError(f"padding_side is '{padding_side}'; use left or right.")
        texts, pictures = pair(text, images)
        rows = [
            self.process(
                one,
                mine,
                images_kwargs=images_kwargs,
                text_kwargs=text_kwargs,
                max_crops=max_crops,
                message_format=message_format,
                always_start_with_space=always_start_with_space,
                truncation=truncation,
                max_length=max_length,
            )
            for one, mine in zip(texts, pictures)
        ]
        pad = self.tokenizer.pad_token_id or 0
        return BatchFeature(collate(rows, pad, padding_side != "right"))

    def apply_chat_template(
        self,
        conversation: list[Any],
        chat_template: str | None = None,
        tokenize: bool = False,
        return_dict: bool = True,
        return_tensors: str | None = "pt",
        add_generation_prompt: bool = True,
        padding: Any = None,
        images_kwargs: dict[str, Any] | None = None,
        max_crops: int | None = None,
        padding_side: str | None = None,
        truncation: Any = None,
        max_length: int | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        **variables: Any,
    ) -> Any:
        """A conversation (or a list of them) in transformers' form as text, or with `tokenize` as model inputs.

        Its pictures (see `read_picture`) go to the beginning, where the model expects them. The text may be given to
        the processor, which does not put it into the template again.

        Args:
            add_generation_prompt: of no effect in the model's own template: a user's turn asks for an answer.
            processor_kwargs: more of the arguments of a call.
            variables: what another template may use; the model's own needs none.
        """
        many = (
            isinstance(conversation, list | tuple)
            and bool(conversation)
            and isinstance(conversation[0], list | tuple)
        )
        talks = list(conversation) if many else [conversation]
        own = self.chat_template or self.tokenizer.chat_template
        if chat_template in (None, own):
            unused = sorted(
                name
                for name, value in variables.items()
                if value is not None and value is not False
            )
            if unused:
                raise ValueError(f"The model's own template takes no {unused[0]}; leave it out.")
            texts = [self._own_template(talk) for talk in talks]
        else:
            variables = {"add_generation_prompt": add_generation_prompt, **variables}
            start = " " if self.always_start_with_space else ""
            texts = [
                render(self.tokenizer, self.words, talk, chat_template, variables, start)
                for talk in talks
            ]
        if not tokenize:
            return texts if many else texts[0]
        pictures = [pictures_of(talk) for talk in talks]
        if any(picture is None for row in pictures for picture in row):
            raise ValueError(
                "A turn has a place for a picture and no picture; add image, path or url to it."
            )
        inputs = self(
            text=texts,
            images=pictures,
            return_tensors=return_tensors,
            images_kwargs=images_kwargs,
            max_crops=max_crops,
            padding_side=padding_side,
            truncation=truncation,
            max_length=max_length,
            **(processor_kwargs or {}),
        )
        return inputs if return_dict else inputs["input_ids"]

    def decode(self, *args: Any, **options: Any) -> str:
        """Decode as the tokenizer does, special tokens skipped unless asked for."""
        return self.tokenizer.decode(*args, **({"skip_special_tokens": True} | options))

    def batch_decode(self, *args: Any, **options: Any) -> list[str]:
        """Decode as the tokenizer does, special tokens skipped unless asked for."""
        return self.tokenizer.batch_decode(*args, **({"skip_special_tokens": True} | options))

    @property
    def model_input_names(self) -> list[str]:
        return list(INPUTS)

    def _own_template(self, talk: Any) -> Rendered:
        turns = turns_of(talk)
        messages = [speak(i, turn, self.message_format, True) for i, turn in enumerate(turns)]
        ended = [
            message + self.tokenizer.eos_token if i % 2 else message
            for i, message in enumerate(messages)
        ]
        messages[0] = speak(0, turns[0], self.message_format, self.always_start_with_space)
        text = "".join([self._start, messages[0], *ended[1:]])
        return Rendered(text, messages, pictures=len(pictures_of(talk)))

    @property
    def _start(self) -> str:
        """The name of the token that begins a document, with which the chat template begins too."""
        return self.tokenizer.convert_ids_to_tokens(self.words.bos)

    def _messages(
        self,
        text: str,
        message_format: str | None = None,
        always_start_with_space: bool | None = None,
    ) -> list[str]:
        """The turns of a text: its own if the chat template wrote it, or one of the user's."""
        if isinstance(text, Rendered) and text.messages is not None:
            return text.messages
        kind = self.message_format if message_format is None else message_format
        space = (
            self.always_start_with_space
            if always_start_with_space is None
            else always_start_with_space
        )
        if kind not in ("none", "role"):
            raise ValueError(f"message_format is '{message_format}'; use 'role' or 'none'.")
        end = self.tokenizer.eos_token
        whole = text.removeprefix(
            self._start
        )  # of the chat template; its token is added with the ids
        if kind == "none" or spoken(whole, end) is not None:
            text = whole
        turns = spoken(text, end)
        # the caller says that it is whole
        if kind == "none" and turns is not None and len(turns) > 1:
            return [speak(0, turns[0].removeprefix(" "), "none", space), *turns[1:]]
        if turns is not None and len(turns) > 1:
            warnings.warn(
                f"The text looks like a conversation of the chat template, but a user may have typed it: its {end} is"
                " read as plain text. Give what apply_chat_template returned unchanged, or message_format='none'.",
                stacklevel=3,
            )
        if turns is not None:
            return [speak(0, text.removeprefix(" "), "none", space)]
        return [speak(0, text, kind, space)]
