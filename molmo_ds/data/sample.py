"""A record of a shard to a Sample: pictures and a tree of conversations, tokenised, labelled and weighed.

Shapes: t tokens, n crops, P patches per crop, Q pooled patches per crop.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from PIL import Image

from molmo_ds.batch import Sample
from molmo_ds.config import RunConfig
from molmo_ds.data.decode import BadSample, load_frames, load_image
from molmo_ds.data.images import ImageProcessor
from molmo_ds.data.layout import IMAGE, Layout
from molmo_ds.data.prompts import Annotation, Conversation, PromptFormatter
from molmo_ds.data.tokens import IMAGE_TOKENS, Tokenizer

Record = dict[str, Any]
Picture = bytes | np.ndarray | Image.Image
VIDEO = "mp4"
FRAMES = 8  # of a video whose record does not say num_frames
PLACE = IMAGE_TOKENS[IMAGE]  # stands in a user's text where a picture goes


@dataclass(frozen=True)
class Text:
    """The tokens of a sample, and where each picture's tokens begin among them."""

    input_ids: list[int]
    labels: list[int]
    loss_weights: list[float]
    branch_lengths: list[int]  # of the prefix and of every branch
    starts: list[int]

    def __len__(self) -> int:
        return len(self.input_ids)


class SampleBuilder:
    """Records to Samples under one RunConfig.

    A record is the JSON of a sample (docs/data_format.md) with `sizes`, the upright (width, height) of every picture,
    and, to be built, `pixels`, their encoded bytes. `size` and `build` draw the same prompts from equal generators.
    """

    def __init__(self, config: RunConfig):
        self.sequence_length = config.data.sequence_length
        self.images = ImageProcessor(config.model)
        self.prompts = PromptFormatter(config.data.prompts)
        self.tokenizer = Tokenizer(config.data.tokenizer, config.model.text.vocab_size)
        self.longest = config.model.text.max_position_embeddings
        settings = [
            dataclasses.asdict(part) for part in (self.images.geometry, config.model.images, config.data.prompts)
        ]
        digest = hashlib.sha256(json.dumps([settings, self.sequence_length], sort_keys=True).encode())
        digest.update(self.tokenizer.digest.encode())
        self.fingerprint = digest.hexdigest()  # what decides a sample's tokens and crops

    def size(self, record: Record, rng: RandomState) -> tuple[int, int]:
        """(tokens, crops) that `build` will make of the record, without its pictures.

        Raises BadSample where the record cannot become a sample whatever its pictures hold.
        """
        layouts = self._layouts(record)
        text = self._text(self._conversations(record, rng), layouts)
        return len(text), sum(layout.crops for layout in layouts)

    def build(self, record: Record, rng: RandomState) -> Sample:
        """The sample, cut at sequence_length.

        Raises BadSample for a picture that cannot be decoded, an annotation that cannot be used, pictures that leave no
        room for text; ValueError where a picture has another size than the record says.
        """
        pictures = self._pictures(record)
        record = {**record, "sizes": _checked_sizes(record, pictures)}
        layouts = self._layouts(record)
        text = self._text(self._conversations(record, rng), layouts)
        return self._sample(text, layouts, pictures, _is_video(record))

    def prompt(
        self,
        pictures: Sequence[Picture],
        request: str | list[str] | Annotation,
        style: str = "demo",
        rng: RandomState | None = None,
    ) -> Sample:
        """What the model is to answer: a question, the turns of a chat (the user's last), or a record's annotation.

        Nothing in it is learnt: labels and weights are 0. Raises ValueError where it is longer than the model can see.
        """
        if isinstance(request, dict):
            annotation = request
        else:
            annotation = {"style": style, "question" if isinstance(request, str) else "messages": request}
        arrays = [_to_array(picture) for picture in pictures]
        size = (arrays[0].shape[1], arrays[0].shape[0]) if arrays else None
        layouts = [self.images.layout(array.shape[1], array.shape[0]) for array in arrays]
        messages = self.prompts.messages(annotation, rng or RandomState(0), size, inference=True)
        text = self._text([Conversation(messages, 0.0)], layouts, self.longest)
        return self._sample(text, layouts, arrays, frames=False)

    def _conversations(self, record: Record, rng: RandomState) -> list[Conversation]:
        sizes = record.get("sizes")
        return self.prompts.conversations(record.get("annotations", []), rng, tuple(sizes[0]) if sizes else None)

    def _layouts(self, record: Record) -> list[Layout]:
        if _is_video(record):
            return [self.images.layout(1, 1, frame=True)] * record.get("num_frames", FRAMES)
        return [self.images.layout(width, height) for width, height in record["sizes"]]

    def _pictures(self, record: Record) -> list[np.ndarray]:
        if _is_video(record):
            return load_frames(record["pixels"][0], record.get("num_frames", FRAMES))
        return [_to_array(picture) for picture in record.get("pixels", ())]

    def _text(self, conversations: list[Conversation], layouts: list[Layout], limit: int | None = None) -> Text:
        """Prefix and branches. Every branch leaves its last token to be predicted only, the prefix predicts the first.

        `limit` is for a prompt, of which nothing is cut off.
        """
        inference = limit is not None
        bodies, inside = [self._body(conversation, layouts, inference) for conversation in conversations], False
        for body in bodies:
            inside = inside or bool(body[2])
        if inside and len(bodies) > 1:
            raise BadSample(f"{PLACE} may stand in a sample's text only when it has one annotation, not {len(bodies)}.")
        ids, starts = [self.tokenizer.bos], []
        for layout in () if inside else layouts:
            starts.append(len(ids))
            ids.extend(self._image_ids(layout))
        labels, weights, lengths = ids[1:] + [0], [0.0] * len(ids), [len(ids)]
        for i, (tokens, learnt, places) in enumerate(bodies):
            if i == 0 and not inference:
                labels[-1], weights[-1] = tokens[0], learnt[0]
            starts.extend(len(ids) + place for place in places)
            ids.extend(tokens if inference else tokens[:-1])
            labels.extend([0] * len(tokens) if inference else tokens[1:])
            weights.extend(learnt if inference else learnt[1:])
            lengths.append(len(ids) - sum(lengths))
        text = Text(ids, [0] * len(ids) if inference else labels, weights, lengths, starts)
        return self._cut(text, layouts, limit or self.sequence_length, inference)

    def _body(
        self, conversation: Conversation, layouts: list[Layout], inference: bool
    ) -> tuple[list[int], list[float], list[int]]:
        """Tokens of one branch, the weight of predicting each, and where pictures stand in it."""
        tokens, weights, places = [], [], []
        for i, message in enumerate(conversation.messages):
            if i % 2:
                answer = [*self.tokenizer.encode(message), self.tokenizer.eos]
                tokens += answer
                weights += [conversation.weight] * len(answer)
                continue
            before, *rest = message.split(PLACE) if layouts else [message]
            tokens += self.tokenizer.encode(before)
            for part in rest:
                if len(places) == len(layouts):
                    raise BadSample(f"The text names more pictures ({PLACE}) than the {len(layouts)} of the sample.")
                image = self._image_ids(layouts[len(places)])
                places.append(len(tokens))
                tokens += image + self.tokenizer.encode(part)
            weights += [0.0] * (len(tokens) - len(weights))
        if places and len(places) < len(layouts):
            raise BadSample(f"The text places {len(places)} of {len(layouts)} pictures; place all of them or none.")
        return tokens, weights, places

    def _image_ids(self, layout: Layout) -> list[int]:
        return (layout.tokens + self.tokenizer.vocab_size).tolist()

    def _cut(self, text: Text, layouts: list[Layout], limit: int, inference: bool) -> Text:
        ends = max((start + len(layout.tokens) for start, layout in zip(text.starts, layouts)), default=1)
        if ends >= limit:
            raise BadSample(
                f"The pictures end at token {ends} and leave no room for text within {limit}; raise"
                " data.sequence_length, or lower images.max_crops or num_frames."
            )
        if len(text) <= limit:
            return text
        if inference:
            raise ValueError(f"The prompt has {len(text)} tokens, more than the model's {limit}; make it shorter.")
        lengths, left = [], limit
        for length in text.branch_lengths:
            lengths.append(min(length, left))
            left -= lengths[-1]
        if not any(text.loss_weights[:limit]):
            raise BadSample(f"Cut at sequence_length {limit}, nothing is left of the answers; raise it.")
        return Text(text.input_ids[:limit], text.labels[:limit], text.loss_weights[:limit], lengths, text.starts)

    def _sample(self, text: Text, layouts: list[Layout], pictures: list[np.ndarray], frames: bool) -> Sample:
        made = [self.images(picture, frame=frames) for picture in pictures]
        images, masks = [crops.images for crops in made], [crops.masks for crops in made]
        where = [np.where(la.positions >= 0, la.positions + start, -1) for la, start in zip(layouts, text.starts)]
        if len(made) != 1:
            images = [torch.empty((0, *self.images.crop_shape), dtype=self.images.dtype), *images]
            masks = [torch.empty(0, self.images.patches), *masks]
            where = [np.empty((0, self.images.pooled_patches), np.int64), *where]
        prefix = text.branch_lengths[0]
        offsets = [0] + [prefix] * (len(text.branch_lengths) - 1)
        ranges = [np.arange(offset, offset + length) for offset, length in zip(offsets, text.branch_lengths)]
        return Sample(
            torch.tensor(text.input_ids),
            torch.tensor(text.labels),
            torch.tensor(text.loss_weights, dtype=torch.float32),
            torch.from_numpy(np.concatenate(ranges)),
            torch.from_numpy(np.repeat(np.arange(len(ranges), dtype=np.int32), text.branch_lengths)),
            images[0] if len(images) == 1 else torch.cat(images),
            masks[0] if len(masks) == 1 else torch.cat(masks),
            torch.from_numpy(np.concatenate(where)),
        )


def _is_video(record: Record) -> bool:
    parts = record.get("images", ())
    videos = [part for part in parts if part.rsplit(".", 1)[-1] == VIDEO]
    if videos and len(parts) > 1:
        raise BadSample("A sample holds one video or pictures, not both.")
    return bool(videos)


def _to_array(picture: Picture) -> np.ndarray:
    if isinstance(picture, bytes):
        return load_image(picture)
    return np.asarray(picture.convert("RGB")) if isinstance(picture, Image.Image) else picture


def _checked_sizes(record: Record, pictures: list[np.ndarray]) -> list[tuple[int, int]]:
    sizes = [(picture.shape[1], picture.shape[0]) for picture in pictures]
    said = [tuple(size) for size in record.get("sizes", sizes)]
    if not _is_video(record) and said != sizes:
        raise ValueError(f"The index says that the pictures measure {said}, but they measure {sizes}; index them anew.")
    return sizes
