"""A checkpoint as something that answers: the network with its weights, and what turns questions into its input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from molmo_ds import files
from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Batch, Sample
from molmo_ds.config import RunConfig
from molmo_ds.data.order.selected import merge, row
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.engine.launch import World
from molmo_ds.engine.strategy import Limits, Strategy
from molmo_ds.infer.generate import Options, generate
from molmo_ds.infer.replica import Replica
from molmo_ds.model.molmo import Molmo
from molmo_ds.ops.linear import library
from molmo_ds.weights.slices import Cut, fill, read_slice
from molmo_ds.weights.source import Source, open_source, tokenizer_folder

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

# tokens of a packed prefill on a CPU, whose mask takes the square of them; a GPU makes none
CPU_PREFILL = 1024


@dataclass(frozen=True)
class Answerer:
    """A model in eval mode on one device."""

    model: Molmo
    builder: SampleBuilder
    device: torch.device

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        return next(self.model.parameters()).element_size()

    def batch(self, prompts: Sequence[Sample]) -> Batch:
        """One row per prompt, padded on the right."""
        longest = max(len(prompt.input_ids) for prompt in prompts)
        return merge([row([prompt], longest) for prompt in prompts]).to(self.device)

    def answer(self, prompts: Sequence[Sample], options: Options) -> tuple[list[str], Tensor]:
        """(generated texts, bool [B]: whether each ended at the model's last position)."""
        tokenizer = self.builder.tokenizer
        made = generate(self.model, self.batch(prompts), tokenizer.eos, options, tokenizer.decode)
        return [text.strip() for text in made.texts(tokenizer.decode)], made.cut

    def replica(self, slots: int) -> Replica:
        """The model as a Replica; a prompt and its answer have all positions that it knows."""
        known = self.model.config.text.max_position_embeddings
        limits = Limits(slots=slots, slot_tokens=known)
        if self.device.type == "cpu":
            limits = replace(limits, prefill_tokens=CPU_PREFILL)
        return Replica.of(self.model, self.builder.tokenizer.eos, limits)


def load(
    path: str | files.Place, tokenizer: str | Path | None = None, device: str | None = None
) -> Answerer:
    """Read a run's folder, one of its checkpoints, a folder of weights, a released or an exported folder.

    Args:
        tokenizer: folder; by default `tokenizer/` in the folder of weights, or the one that the run was trained with.
        device: by default the first GPU, else the CPU; on a GPU the weights are bfloat16.

    Raises ValueError if there is no such device, no whole checkpoint or no tokenizer.
    """
    where = usable_device(device)
    source, config = look_up(path, tokenizer)
    return read(source, config, where, default_precision(where))


def look_up(
    path: str | files.Place, tokenizer: str | Path | None = None, part: int = 0, parts: int = 1
) -> tuple[Source, RunConfig]:
    """(the weights, the configuration with which they answer); reads no tensor, otherwise as `load`.

    Args:
        part, parts: which files' checksums are compared, as in `open_source`.
    """
    source = open_source(path, part, parts)
    named = tokenizer_folder(files.place(tokenizer)) if tokenizer else None
    words = str(named or tokenizer or source.config.data.tokenizer)
    if not words:
        raise ValueError(
            f"{source.path} does not say which tokenizer it belongs to; name its folder with --tokenizer."
        )
    return source, replace(source.config, data=replace(source.config.data, tokenizer=words))


def read(source: Source, config: RunConfig, device: torch.device, precision: Precision) -> Answerer:
    """Read the weights that `look_up` found."""
    builder = SampleBuilder(config)
    with torch.device("meta"):
        model = Molmo(config.model)
    columns = by_columns(source.shapes, precision, device)
    fill(model, source, dtype=DTYPES[precision], device=device, by_columns=columns)
    return Answerer(model.eval(), builder, device)


def read_replica(
    source: Source,
    model: MolmoConfig,
    strategy: Strategy,
    world: World,
    precision: Precision,
    eos: int,
) -> Replica:
    """Read this rank's part of the weights that `look_up` found; all ranks make the same calls, and fail together."""
    dtype = DTYPES[precision]
    columns = set()
    if strategy.execution.weights is None:  # others have products of their own
        columns = by_columns(source.shapes, precision, world.device)

    def slices(wanted: dict[str, Cut]) -> Iterable[tuple[str, Tensor]]:
        for name, cut in wanted.items():
            yield name, read_slice(source, name, cut, dtype, world.device, name in columns)

    return Replica.over_ranks(model, strategy, world, slices, eos, dtype)


def by_columns(
    shapes: Mapping[str, Sequence[int]], precision: Precision, device: torch.device
) -> set[str]:
    """The decoder's matrices, where this CPU multiplies a few rows faster with weights that lie column by column."""
    if device.type != "cpu" or precision != "fp32" or not library.columns_are_faster():
        return set()
    return {
        name
        for name, shape in shapes.items()
        if name.startswith(("layers.", "head.")) and name.endswith(".weight") and len(shape) == 2
    }


def with_crops(config: RunConfig, max_crops: int | None) -> RunConfig:
    """The configuration with at most that many crops of a picture.

    None changes nothing, nor does a number where each picture is resized into one crop.
    """
    if max_crops is None or config.model.images.crop_mode == "resize":
        return config
    images = replace(config.model.images, max_crops=max_crops)
    return replace(config, model=replace(config.model, images=images))


def default_precision(device: torch.device) -> Precision:
    """bf16 on a GPU, fp32 on a CPU."""
    return "bf16" if device.type == "cuda" else "fp32"


def usable_device(name: str | None) -> torch.device:
    """The device of that name, by default the first GPU, else the CPU; ValueError for one that cannot be used."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:  # torch lists every kind it has a name for
        raise ValueError(f"There is no device '{name}'; here are {_devices()}.") from None
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ValueError(
            f"The device '{name}' cannot be used ({reason}); here are {_devices()}."
        ) from None
    return device


def _devices() -> str:
    return ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
