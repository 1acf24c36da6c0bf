"""A checkpoint as something that answers: the network with its weights, and what turns questions into its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from molmo_ds.batch import Batch, Sample
from molmo_ds.data.order.packing import collate
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.infer.generate import Options, generate
from molmo_ds.model.molmo import Molmo
from molmo_ds.weights.slices import fill
from molmo_ds.weights.source import open_source


@dataclass(frozen=True)
class Answerer:
    """A model in eval mode on one device."""

    model: Molmo
    builder: SampleBuilder
    device: torch.device

    def batch(self, prompts: Sequence[Sample]) -> Batch:
        """One row per prompt, padded on the right."""
        return collate([[prompt] for prompt in prompts], max(len(p.input_ids) for p in prompts)).to(self.device)

    def answer(self, prompts: Sequence[Sample], options: Options) -> tuple[list[str], Tensor]:
        """(the texts that the model generates, bool [B]: which of them ended at the last position that it knows)."""
        tokenizer = self.builder.tokenizer
        made = generate(self.model, self.batch(prompts), tokenizer.eos, options, tokenizer.decode)
        return [text.strip() for text in made.texts(tokenizer.decode)], made.cut


def load(path: str | Path, tokenizer: str | Path | None = None, device: str | None = None) -> Answerer:
    """Read a run's folder, one of its checkpoints, a folder of weights, a released or an exported folder.

    Args:
        tokenizer: folder; by default `tokenizer/` beside the weights, or the one that the run was trained with.
        device: by default the first GPU, else the CPU; on a GPU the weights are bfloat16.

    Raises ValueError if there is no such device, no whole checkpoint or no tokenizer.
    """
    where = _device(device)
    source = open_source(path)
    config = source.config
    words = str(tokenizer or config.data.tokenizer)
    if not words:
        raise ValueError(f"{source.path} does not say which tokenizer it belongs to; name its folder with --tokenizer.")
    builder = SampleBuilder(replace(config, data=replace(config.data, tokenizer=words)))
    with torch.device("meta"):
        model = Molmo(config.model)
    fill(model, source, dtype=torch.bfloat16 if where.type == "cuda" else torch.float32, device=where)
    return Answerer(model.eval(), builder, where)


def _device(name: str | None) -> torch.device:
    """The device of that name, which must be usable; by default the first GPU, else the CPU."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:  # torch lists every kind it has a name for
        raise ValueError(f"There is no device '{name}'; here are {_devices()}.") from None
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ValueError(f"The device '{name}' cannot be used ({reason}); here are {_devices()}.") from None
    return device


def _devices() -> str:
    return ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
