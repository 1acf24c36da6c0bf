"""A request to what a Replica is asked: by the very files that training used, so that there is no second template."""

import functools
from dataclasses import replace

from molmo_ds.data.decode import read_size
from molmo_ds.data.sample.builder import SampleBuilder, Seen
from molmo_ds.data.sample.footage import footage
from molmo_ds.data.sample.turns import unspoken
from molmo_ds.data.video import video_size
from molmo_ds.eval.clients.chat import VERBATIM
from molmo_ds.infer.load import look_up, with_crops
from molmo_ds.serve.dispatcher import Prompt
from molmo_ds.serve.protocol import Refused, Request
from molmo_ds.serve.sample_bytes import pack_sample
from molmo_ds.settings import to_dict
from molmo_ds.weights.source import NO_FILE


class Prompts:
    """Makes prompts under the configuration that a folder was trained with; `make` may run in several threads.

    Args:
        max_pixels: of all pictures of a request together, or of all frames of its video; they are counted before any
            is decoded.
        max_frames: of a video.
    """

    def __init__(self, folder: str, tokenizer: str | None, max_pixels: int, max_frames: int):
        _, self.config = look_up(folder, tokenizer, *NO_FILE)  # checksums are the engine's affair
        self.max_pixels = max_pixels
        self.max_frames = max_frames
        self.builder = SampleBuilder(self.config)
        self.tokenizer = self.builder.tokenizer
        self.known = self.config.model.text.max_position_embeddings
        self.said = to_dict(self.config.data.prompts)
        self.builder_for = functools.lru_cache(maxsize=80)(self._builder_for)

    def make(self, request: Request, files: list[bytes]) -> Prompt:
        """The prompt of a request; Refused (400, 413) where what it shows or its length do not allow one.

        Args:
            files: its pictures, its video, or the frames that the video is kept as.
        """
        style = request.style or "demo"
        turns = [unspoken(turn) for turn in request.turns] if style == VERBATIM else request.turns
        try:
            builder = self.builder_for(request.max_crops, style == VERBATIM)
            question = turns if len(turns) > 1 else turns[0]
            sample = builder.prompt(self._see(builder, request, files), question, style)
        except ValueError as error:
            raise Refused(400, str(error)) from None
        if len(sample.input_ids) >= self.known:
            count = len(sample.input_ids)
            raise Refused(
                400,
                f"The prompt has {count} tokens and the model knows {self.known} positions; shorten it.",
            )
        return Prompt(pack_sample(sample), len(sample.input_ids))

    def _builder_for(self, max_crops: int | None, verbatim: bool) -> SampleBuilder:
        """The builder with other crops or without a style's prefix; it shares the tokenizer."""
        config = with_crops(self.config, max_crops)
        if verbatim:
            prompts = replace(config.data.prompts, system_prompt="none")
            config = replace(config, data=replace(config.data, prompts=prompts))
        return SampleBuilder(config, self.tokenizer)

    def _see(self, builder: SampleBuilder, request: Request, files: list[bytes]) -> Seen:
        """What a request shows, decoded once its limits are kept; ValueError where it cannot be."""
        if request.video is None:
            self._check("pictures", [read_size(data)[:2] for data in files])
            low = [i for i, picture in enumerate(request.pictures) if picture.detail == "low"]
            return builder.see(files, low)
        if len(files) > 1 and request.video.fps is None:
            raise Refused(
                400,
                "A video that is kept as pictures needs fps, how many a second, next to its URL.",
            )
        if builder.family == "molmo" and request.video.subtitles:
            raise Refused(400, "This model reads no subtitles; leave them out.")
        record = {"images": ["video"] * len(files), "pixels": files, **request.video.film()}
        film = footage(record, builder.video)
        frames = len(film.times)
        if frames > self.max_frames:
            raise Refused(
                400,
                f"The video shows {frames} frames, more than the {self.max_frames} allowed; ask for fewer by"
                " num_frames next to its URL.",
            )
        if film.numbers is None:
            size = video_size(files[0])
            self._check("frames", [(size.width, size.height)] * frames)
        else:
            self._check("frames", [read_size(files[number])[:2] for number in film.numbers])
        return builder.see_video(record)

    def _check(self, what: str, sizes: list[tuple[int, int]]) -> None:
        pixels = sum(width * height for width, height in sizes)
        if pixels > self.max_pixels:
            raise Refused(
                413,
                f"The {what} have {pixels} pixels, more than {self.max_pixels}; send fewer or smaller ones.",
            )
