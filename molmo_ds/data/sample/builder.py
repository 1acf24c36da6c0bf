"""A record of a shard to a Sample: pictures and a tree of conversations, tokenised, labelled and weighed.

Shapes: t tokens, n crops, P patches per crop, Q pooled patches per crop.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from PIL import Image

from molmo_ds.batch import Sample
from molmo_ds.config import RunConfig, SourceConfig
from molmo_ds.data.decode import load_frames, load_image
from molmo_ds.data.pixels import to_pixels
from molmo_ds.data.sample.annotation import Annotation, read_annotation
from molmo_ds.data.sample.images import ImageProcessor
from molmo_ds.data.sample.layout import Layout
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.sample.record import Record, check_pictures, count_frames, first_size, is_video
from molmo_ds.data.sample.tree import Tree, ask, learn
from molmo_ds.data.tokens import Tokenizer

Picture = bytes | np.ndarray | Image.Image


@dataclasses.dataclass(frozen=True)
class Seen:
    """Pictures as the network gets them, for any number of prompts about them."""

    layouts: list[Layout]
    size: tuple[int, int] | None  # width, height of the first
    images: torch.Tensor  # [n, ...], the crops of all
    masks: torch.Tensor  # float32 [n, P]
    pooled_patches: int  # of a crop


class SampleBuilder:
    """Records to Samples under one RunConfig.

    A record is the JSON of a sample (docs/reference/data-format.md) with `sizes`, the upright (width, height) of every
    picture, and, to be built, `pixels`, their encoded bytes. `size` and `build` draw the same prompts from equal
    generators.

    Args:
        tokenizer: that of the configuration, where it is read already.
        source: whose style, weight, crops and root_subsegments count where they say something.
    """

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Tokenizer | None = None,
        source: SourceConfig | None = None,
    ):
        source = source or SourceConfig()
        config = config_of_source(config, source)
        self.sequence_length = config.data.sequence_length
        self.images = ImageProcessor(config.model)
        self.prompts = PromptFormatter(config.data.prompts, source)
        self.tokenizer = tokenizer or Tokenizer(config.data.tokenizer, config.model.text.vocab_size)
        self.longest = config.model.text.max_position_embeddings
        settings = [
            dataclasses.asdict(part)
            for part in (self.images.geometry, config.model.images, config.data.prompts)
        ]
        digest = hashlib.sha256(
            json.dumps([settings, self.sequence_length], sort_keys=True).encode()
        )
        digest.update(self.tokenizer.digest.encode())
        if source.style or source.weight != 1:
            digest.update(f"{source.style} {source.weight}".encode())
        self.fingerprint = digest.hexdigest()  # what decides a sample's tokens and crops
        self.cut = 0  # tokens that sequence_length cost the sample that was sized or built last

    def size(self, record: Record, rng: RandomState) -> tuple[int, int]:
        """(tokens, crops) that `build` will make of the record, without its pictures.

        Raises BadSample where the record cannot become a sample whatever its pictures hold.
        """
        layouts = self._layouts(record)
        return len(self._tree(record, layouts, rng)), sum(layout.crops for layout in layouts)

    def build(self, record: Record, rng: RandomState) -> Sample:
        """The sample, cut at sequence_length.

        Raises BadSample for a picture that cannot be decoded, an annotation that cannot be used, pictures that leave no
        room for text; ValueError where a picture has another size than the record says.
        """
        pictures = _pictures(record)
        record = {**record, "sizes": _checked_sizes(record, pictures)}
        layouts = self._layouts(record)
        tree = self._tree(record, layouts, rng)
        single = [is_video(record)] * len(pictures)
        return _sample(tree, self._seen(layouts, pictures, single))

    def see(self, pictures: Sequence[Picture], overviews: Collection[int] = ()) -> Seen:
        """Decode pictures and cut them into crops, once for all prompts about them; BadSample where one is broken.

        Args:
            overviews: numbers of the pictures of which one resized crop is enough.
        """
        arrays = [_to_array(picture) for picture in pictures]
        single = [number in overviews for number in range(len(arrays))]
        layouts = [
            self.images.layout(array.shape[1], array.shape[0], one)
            for array, one in zip(arrays, single)
        ]
        return self._seen(layouts, arrays, single)

    def prompt(
        self,
        pictures: Sequence[Picture] | Seen,
        request: str | list[str] | dict[str, Any],
        style: str = "demo",
        rng: RandomState | None = None,
    ) -> Sample:
        """The prompt of an answer: a question, the turns of a chat (the user's last), or a record's annotation.

        Nothing in it is learnt: labels and weights are 0. Raises ValueError where it is longer than the model can see.
        """
        if isinstance(request, dict):
            annotation = read_annotation(request)
        elif isinstance(request, str):  # not read: a user's words stay what they are
            annotation = Annotation(style=style, question=request)
        else:
            annotation = Annotation(style=style, messages=list(request))
        seen = pictures if isinstance(pictures, Seen) else self.see(pictures)
        messages = self.prompts.messages(
            annotation, rng or RandomState(0), seen.size, inference=True
        )
        return _sample(ask(self.tokenizer, messages, seen.layouts, self.longest), seen)

    def _tree(self, record: Record, layouts: list[Layout], rng: RandomState) -> Tree:
        conversations = self.prompts.conversations(
            record.get("annotations") or [], rng, first_size(record)
        )
        check_pictures(record, [conversation.pictures for conversation in conversations])
        tree = learn(self.tokenizer, conversations, layouts, self.sequence_length)
        self.cut = tree.cut
        return tree

    def _layouts(self, record: Record) -> list[Layout]:
        if is_video(record):
            return [self.images.layout(1, 1, frame=True)] * count_frames(record)
        return [self.images.layout(width, height) for width, height in record["sizes"]]

    def _seen(self, layouts: list[Layout], pictures: list[np.ndarray], single: list[bool]) -> Seen:
        if not pictures:
            images = torch.empty((0, *self.images.crop_shape), dtype=self.images.dtype)
            masks = torch.empty(0, self.images.patches)
            return Seen(layouts, None, images, masks, self.images.pooled_patches)
        size = (pictures[0].shape[1], pictures[0].shape[0])
        made = [self.images(picture, frame=one) for picture, one in zip(pictures, single)]
        images = _joined([crops.images for crops in made])
        masks = _joined([crops.masks for crops in made])
        return Seen(layouts, size, images, masks, self.images.pooled_patches)


def config_of_source(config: RunConfig, source: SourceConfig) -> RunConfig:
    """The configuration with the crops and the root_subsegments of a source that has its own."""
    images = config.model.images
    prompts = config.data.prompts
    if source.max_crops is not None:
        images = dataclasses.replace(images, max_crops=source.max_crops)
    if source.root_subsegments is not None:
        prompts = dataclasses.replace(prompts, root_subsegments=source.root_subsegments)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, images=images),
        data=dataclasses.replace(config.data, prompts=prompts),
    )


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    # crops are megabytes: no copy without need
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _sample(tree: Tree, seen: Seen) -> Sample:
    """The tokens of a tree with the pictures that it speaks of."""
    moved = zip(seen.layouts, tree.starts)
    where = [np.where(one.positions >= 0, one.positions + start, -1) for one, start in moved]
    if not where:
        where = [np.empty((0, seen.pooled_patches), np.int64)]
    return Sample(
        input_ids=torch.tensor(tree.input_ids),
        labels=torch.tensor(tree.labels),
        loss_weights=torch.tensor(tree.loss_weights, dtype=torch.float32),
        position_ids=torch.from_numpy(tree.positions()),
        branch_ids=torch.from_numpy(tree.branches()),
        images=seen.images,
        image_masks=seen.masks,
        image_positions=torch.from_numpy(np.concatenate(where)),
    )


def _pictures(record: Record) -> list[np.ndarray]:
    if is_video(record):
        return load_frames(record["pixels"][0], count_frames(record))
    return [_to_array(picture) for picture in record.get("pixels", ())]


def _to_array(picture: Picture) -> np.ndarray:
    return load_image(picture) if isinstance(picture, bytes) else to_pixels(picture)


def _checked_sizes(record: Record, pictures: list[np.ndarray]) -> list[tuple[int, int]]:
    sizes = [(picture.shape[1], picture.shape[0]) for picture in pictures]
    said = [tuple(size) for size in record.get("sizes", sizes)]
    if not is_video(record) and said != sizes:
        raise ValueError(
            f"The index says that the pictures measure {said}, but they measure {sizes}; index them again."
        )
    return sizes
