"""A request to what a Replica is asked: by the very files that training used, so that there is no second template."""

import functools
from dataclasses import replace

from safetensors.torch import save

from molmo_ds.batch import Sample
from molmo_ds.data.decode import read_size
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.data.sample.turns import unspoken
from molmo_ds.eval.chat import VERBATIM
from molmo_ds.infer.load import look_up, with_crops
from molmo_ds.serve.dispatcher import Prompt
from molmo_ds.serve.protocol import Refused, Request
from molmo_ds.weights.source import NO_FILE


class Prompts:
    """Makes prompts under the configuration that a folder was trained with; `make` may run in several threads.

    Args:
        max_pixels: of all pictures of a request together; they are counted before any is decoded.
    """

    def __init__(self, folder: str, tokenizer: str | None, max_pixels: int):
        _, self.config = look_up(folder, tokenizer, *NO_FILE)  # checksums are the engine's affair
        self.max_pixels = max_pixels
        self.builder = SampleBuilder(self.config)
        self.tokenizer = self.builder.tokenizer
        self.known = self.config.model.text.max_position_embeddings
        self.builder_for = functools.lru_cache(maxsize=80)(self._builder_for)

    def make(self, request: Request, pictures: list[bytes]) -> Prompt:
        """The prompt of a request; Refused (400, 413) where its pictures or its length do not allow one."""
        self._check(pictures)
        overviews = [i for i, picture in enumerate(request.pictures) if picture.detail == "low"]
        style = request.style or "demo"
        turns = [unspoken(turn) for turn in request.turns] if style == VERBATIM else request.turns
        try:
            builder = self.builder_for(request.max_crops, style == VERBATIM)
            question = turns if len(turns) > 1 else turns[0]
            sample = builder.prompt(builder.see(pictures, overviews), question, style)
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

    def _check(self, pictures: list[bytes]) -> None:
        pixels = 0
        for data in pictures:
            try:
                width, height, _ = read_size(data)
            except ValueError as error:
                raise Refused(400, str(error)) from None
            pixels += width * height
        if pixels > self.max_pixels:
            raise Refused(
                413,
                f"The pictures have {pixels} pixels, more than {self.max_pixels}; make them smaller.",
            )


def pack_sample(sample: Sample) -> bytes:
    """A Sample as safetensors."""
    return save({name: tensor.contiguous() for name, tensor in vars(sample).items()})
