"""A record of a shard to a Sample: pictures and a tree of conversations, tokenised, labelled and weighed.

Shapes: t tokens, n crops, P patches per crop, m windows of W patches.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from PIL import Image

from molmo_ds.batch import Sample, SelectionSample
from molmo_ds.config import RunConfig, SourceConfig
from molmo_ds.data.decode import BadSample, load_image
from molmo_ds.data.pixels import to_pixels
from molmo_ds.data.sample import selected
from molmo_ds.data.sample.annotation import Annotation, read_annotation, styles_of
from molmo_ds.data.sample.footage import Footage, footage, subtitles
from molmo_ds.data.sample.pictures.image_ids import image_ids
from molmo_ds.data.sample.pictures.images import ImageProcessor
from molmo_ds.data.sample.pictures.layout import IM_PATCH
from molmo_ds.data.sample.pictures.visual import (
    Block,
    frames_block,
    joined_windows,
    picture_blocks,
    video_block,
)
from molmo_ds.data.sample.pointed import Scene
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.sample.record import Record, check_pictures, first_size, is_video
from molmo_ds.data.sample.source_settings import config_of_source, decisive, hashed, of_samples
from molmo_ds.data.sample.styles import FREE, POINTING_STYLES
from molmo_ds.data.sample.tree import Tree, ask, learn
from molmo_ds.data.sample.turns import Conversation
from molmo_ds.data.tokens import Tokenizer

Picture = bytes | np.ndarray | Image.Image


@dataclasses.dataclass(frozen=True)
class Seen:
    """Pictures as the network gets them, for any number of prompts about them."""

    blocks: list[Block]
    size: tuple[int, int] | None  # width, height of the first
    images: torch.Tensor  # [n, ...], the crops of all
    masks: torch.Tensor  # float32 [n, P]
    windows: torch.Tensor  # int64 [m, W], of all blocks


class SampleBuilder:
    """Records to Samples under one RunConfig.

    A record is the JSON of a sample (docs/reference/data-format.md) with `sizes`, the upright (width, height) of every
    picture, and, to be built, `pixels`, their encoded bytes. `size` and `build` draw the same prompts from equal
    generators.

    Args:
        tokenizer: that of the configuration, where it is read already.
        source: whose style, weights, crops and root_subsegments count where they say something.
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
        self.family = config.model.family
        self.video = config.model.video
        self.attention = config.model.text.image_attention
        self.selects = config.model.selection is not None
        self.marks = "hemolmo" if self.selects else "molmo2"  # whose tokens may see each other
        vocabulary = config.model.text.vocab_size
        self.tokenizer = tokenizer or Tokenizer(config.data.tokenizer, vocabulary, self.family)
        self.longest = config.model.text.max_position_embeddings
        digest = hashlib.sha256(decisive(config, self.images.geometry).encode())
        digest.update(self.tokenizer.digest.encode())
        if self.selects:
            digest.update(str(config.model.selection.picks).encode())
        own = of_samples(source)
        if own != SourceConfig():
            digest.update(json.dumps(hashed(own), sort_keys=True).encode())
        self.fingerprint = digest.hexdigest()  # what decides a sample's tokens and crops
        # by losses.Kind.name, of the sample that was sized or built last: tokens that sequence_length cost it, moments
        # of tracks at which no frame is shown and, where it was built or seen, frames that were shown again
        self.lost: dict[str, int] = {}

    def size(self, record: Record, rng: RandomState) -> tuple[int, int]:
        """(tokens, crops) that `build` will make of the record, without its pictures.

        Raises BadSample where the record cannot become a sample whatever its pictures hold.
        """
        blocks, times, _ = self._blocks(record, rng)
        tree = self._tree(record, blocks, times, rng)
        return len(tree), sum(block.crops for block in blocks)

    def build(self, record: Record, rng: RandomState) -> Sample:
        """The sample, cut at sequence_length.

        Raises BadSample for a picture that cannot be decoded, an annotation that cannot be used, pictures that leave no
        room for text; ValueError where a picture has another size than the record says.
        """
        self.lost = {}
        if is_video(record):
            return self._build_video(record, rng)
        pictures = [_to_array(picture) for picture in record.get("pixels", ())]
        record = {**record, "sizes": _checked_sizes(record, pictures)}
        blocks, times, high = self._blocks(record, rng)
        tree = self._tree(record, blocks, times, rng)
        return self._sample(tree, self._seen(blocks, pictures, [False] * len(pictures), high))

    def _build_video(self, record: Record, rng: RandomState) -> Sample:
        film = footage(record, self.video)
        blocks, times, _ = self._blocks(record, rng, film)
        seen = self._seen_video(record, film, blocks[0])
        record = {**record, "sizes": [] if seen.size is None else [seen.size]}
        return self._sample(self._tree(record, blocks, times, rng), seen)

    def see(self, pictures: Sequence[Picture], overviews: Collection[int] = ()) -> Seen:
        """Decode pictures and cut them into crops, once for all prompts about them; BadSample where one is broken.

        Args:
            overviews: numbers of the pictures of which one resized crop is enough.
        """
        if len(pictures) > 1:
            self._refuse_more_than_a_picture()
        if self.selects and overviews:
            raise BadSample(
                "HeMolmo sees a picture in a low and a high resolution; do not ask for the low alone."
            )
        arrays = [_to_array(picture) for picture in pictures]
        single = [number in overviews for number in range(len(arrays))]
        several = len(arrays) > 1
        layouts = [
            self.images.layout(array.shape[1], array.shape[0], one, several=several)
            for array, one in zip(arrays, single)
        ]
        blocks = picture_blocks(self.tokenizer, layouts, self.family == "molmo2")
        return self._seen(blocks, arrays, single)

    def see_video(self, record: Record) -> Seen:
        """The video of a record, decoded, for any number of prompts about it; errors as of `build`.

        The record needs `images` and `pixels`, as {"images": ["mp4"], "pixels": [data]}; `clip`, `subtitles` and
        `num_frames` count as in shards.
        """
        self._refuse_more_than_a_picture()
        film = footage(record, self.video)
        return self._seen_video(record, film, self._video(record, film))

    def _seen_video(self, record: Record, film: Footage, block: Block) -> Seen:
        frames = self._counted(_frames(record, film))
        return self._seen([block], frames, [True] * len(film.times))

    def _counted(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The frames; of those that are the one before again the number is kept."""
        self.lost["frames"] = 0
        before = None
        for frame in frames:
            self.lost["frames"] += frame is before
            before = frame
            yield frame

    def frames(self, record: Record) -> list[np.ndarray]:
        """The decoded frames of a record's video, uint8 [height, width, 3] each; errors as of `build`."""
        return list(_frames(record, footage(record, self.video)))

    def prompt(
        self,
        pictures: Sequence[Picture] | Seen,
        request: str | list[str] | dict[str, Any],
        style: str = FREE,
        rng: RandomState | None = None,
    ) -> Sample:
        """The prompt of an answer: a question, the turns of a chat (the user's last), or a record's annotation.

        Nothing in it is learnt: labels and weights are 0. Raises ValueError where it is longer than the model can see.

        Args:
            style: of a question or a chat; demo = asked as it stands, in whatever way the model was trained to.
        """
        style = self.prompts.free_style if style == FREE else style
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
        pictures = [block.ids for block in seen.blocks]
        chat = self.prompts.config.message_format == "chat"
        made = self._sample(ask(self.tokenizer, messages, pictures, self.longest, chat), seen)
        if self.selects and made.reach >= self.longest:
            raise ValueError(
                f"The prompt takes {made.reach} of the model's {self.longest} positions, those of windows that are not"
                " shown among them; make it shorter, or show fewer crops."
            )
        return made

    def conversations(self, record: Record, rng: RandomState) -> list[Conversation]:
        """What is said about the record's pictures, as `build` draws it from an equal generator; BadSample as there."""
        _, times, _ = self._blocks(record, rng)
        return self._conversations(record, times, rng)

    def _conversations(
        self, record: Record, times: list[float] | None, rng: RandomState
    ) -> list[Conversation]:
        return self.prompts.conversations(
            record.get("annotations") or [],
            rng,
            first_size(record),
            Scene(record.get("sizes") or [], times),
        )

    def _tree(
        self,
        record: Record,
        blocks: list[Block],
        times: list[float] | None,
        rng: RandomState,
    ) -> Tree:
        conversations = self._conversations(record, times, rng)
        check_pictures(record, [conversation.pictures for conversation in conversations])
        if self.prompts.config.image_last and blocks and len(conversations) > 1:
            raise BadSample(
                f"With data.prompts.image_last a sample has one annotation, not {len(conversations)}; set"
                " split_annotations=true of its source."
            )
        pictures = [block.ids for block in blocks]
        tree = learn(self.tokenizer, conversations, pictures, self.sequence_length)
        self.lost["tokens"] = tree.cut
        self.lost["moments"] = sum(conversation.unshown for conversation in conversations)
        return tree

    def _blocks(
        self, record: Record, rng: RandomState, film: Footage | None = None
    ) -> tuple[list[Block], list[float] | None, bool]:
        """The tokens of pictures or of a video, the times of its frames, and whether more crops were drawn."""
        if is_video(record) or len(record["sizes"]) > 1:
            self._refuse_more_than_a_picture()
        if is_video(record):
            film = film or footage(record, self.video)
            return [self._video(record, film)], film.times, False
        limit = self.images.config.max_images
        if limit is not None and len(record["sizes"]) > limit:
            raise BadSample(
                f"The sample has {len(record['sizes'])} pictures, more than images.max_images={limit}."
            )
        high = self._draws_high(record, rng)
        sizes = record["sizes"]
        layouts = [self.images.layout(*size, high=high, several=len(sizes) > 1) for size in sizes]
        return picture_blocks(self.tokenizer, layouts, self.family == "molmo2"), None, high

    def _refuse_more_than_a_picture(self) -> None:
        if self.selects:
            raise BadSample("HeMolmo sees one picture; leave videos and several pictures out.")

    def _draws_high(self, record: Record, rng: RandomState) -> bool:
        """Whether a single picture that is pointed at gets the crops of high resolution."""
        share = self.images.config.p_high_res
        if not share or len(record["sizes"]) != 1:
            return False
        own = self.prompts.source.style
        styles = {own} if own else styles_of(record.get("annotations") or [])
        return bool(styles & set(POINTING_STYLES)) and rng.random_sample() < share

    def _video(self, record: Record, film: Footage) -> Block:
        if self.family == "molmo":
            frame = self.images.layout(1, 1, frame=True)
            return frames_block(self.tokenizer, frame, len(film.times), self.images.patches)
        said = subtitles(record, film.times, self.video.subtitle_seconds)
        windows = self.images.frame_windows
        return video_block(
            self.tokenizer, self.video, film.times, windows, self.images.patches, said
        )

    def _seen(
        self,
        blocks: list[Block],
        pictures: Iterable[np.ndarray],
        single: list[bool],
        high: bool = False,
    ) -> Seen:
        """The crops of pictures, each of which is forgotten before the next is asked for: frames are many."""
        parts = [block.windows for block in blocks] or [self.images.no_windows]
        crops = [block.crops for block in blocks]
        windows = torch.from_numpy(joined_windows(parts, crops, self.images.patches))
        size = None
        made = []
        for picture, one in zip(pictures, single):
            size = size or (picture.shape[1], picture.shape[0])
            made.append(self.images(picture, frame=one, high=high, several=len(single) > 1))
        if size is None:
            images = torch.empty((0, *self.images.crop_shape), dtype=self.images.dtype)
            return Seen(blocks, None, images, torch.empty(0, self.images.patches), windows)
        images = _joined([crops.images for crops in made])
        masks = _joined([crops.masks for crops in made])
        return Seen(blocks, size, images, masks, windows)

    def _sample(self, tree: Tree, seen: Seen) -> Sample:
        """The tokens of a tree with the pictures that it speaks of; by numpy, for which a few tokens are cheap."""
        given = np.array(tree.input_ids, np.int64)
        ids = torch.from_numpy(given)
        patches = np.flatnonzero(given == self.tokenizer.vocab_size + IM_PATCH)
        made = Sample(
            input_ids=ids,
            labels=torch.from_numpy(np.array(tree.labels, np.int64)),
            loss_weights=torch.from_numpy(np.array(tree.loss_weights, np.float32)),
            position_ids=torch.from_numpy(tree.positions()),
            branch_ids=torch.from_numpy(tree.branches()),
            image_ids=image_ids(ids, self.tokenizer.vocab_size, self.attention, self.marks),
            images=seen.images,
            image_masks=seen.masks,
            windows=seen.windows,
            image_positions=torch.from_numpy(patches),
        )
        return self._selected(made, tree, seen) if self.selects else made

    def _selected(self, sample: Sample, tree: Tree, seen: Seen) -> SelectionSample:
        """The sample with what HeMolmo's scorer needs of its picture, if it has one."""
        places = torch.empty(0, dtype=torch.int64)
        shares = torch.empty(0, 0)
        if seen.blocks:
            layout = seen.blocks[0].layout
            positions = selected.moved(sample.position_ids, tree.starts[0], layout)
            sample = dataclasses.replace(sample, position_ids=positions)
            places = selected.window_places(layout)
            shares = selected.shares(self.images.geometry.pooled, layout.high)
        return selected.selected(sample, self.tokenizer.vocab_size, places, shares)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    # crops are megabytes: no copy without need
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _frames(record: Record, film: Footage) -> Iterator[np.ndarray]:
    if film.numbers is None:
        return film.frames(record)
    return _pictures(record, film.numbers)


def _pictures(record: Record, numbers: list[int]) -> Iterator[np.ndarray]:
    """Pictures of a record, the same array where a number comes again."""
    before = None
    for number in numbers:
        if number != before:
            frame = _to_array(record["pixels"][number])
        before = number
        yield frame


def _to_array(picture: Picture) -> np.ndarray:
    return load_image(picture) if isinstance(picture, bytes) else to_pixels(picture)


def _checked_sizes(record: Record, pictures: list[np.ndarray]) -> list[tuple[int, int]]:
    sizes = [(picture.shape[1], picture.shape[0]) for picture in pictures]
    said = [tuple(size) for size in record.get("sizes", sizes)]
    if said != sizes:
        raise ValueError(
            f"The index says that the pictures measure {said}, but they measure {sizes}; index them again."
        )
    return sizes
