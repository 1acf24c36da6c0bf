"""What a run costs: steps, positions, GPU-hours at a stated share of the peak, bytes of a checkpoint.

Operations are those of model/flops.py: matrix products, all components trained, no recomputation, attention over half
of a whole sequence; the log's MFU counts what a batch has of it. Positions are those that are computed, padding
included; crops are the budget of a sequence, a frame of a video being one.
"""

from dataclasses import dataclass

import torch

from molmo_ds.config import RunConfig
from molmo_ds.data.order import epochs
from molmo_ds.data.sample.pictures.layout import Geometry
from molmo_ds.engine import optim
from molmo_ds.model import lora
from molmo_ds.model.flops import attention, flops_per_crop, flops_per_token, mlp
from molmo_ds.model.molmo import Molmo

CAPTIONS = 700_000  # of PixMo-Cap, for the steps of epochs where the data is not there
PEAK = 989e12  # operations a second of an H100 or H200 in bf16, dense, by NVIDIA's data sheet


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one run."""

    steps: int
    positions: int  # of the decoder, padding included
    crops: int  # of pictures, and frames of videos, at most: the budget of each sequence
    operations: float
    parameters: int
    trained: int
    exports: bool = True  # whether there is a released format to write

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint: weights in fp32, and AdamW's two moments of those that are trained."""
        return 4 * self.parameters + 8 * self.trained

    @property
    def export_bytes(self) -> int:
        """Of an exported folder in bf16."""
        return 2 * self.parameters

    def gpu_hours(self, mfu: float, peak: float = PEAK) -> float:
        """At a share `mfu` of the peak."""
        return self.operations / (mfu * peak) / 3600

    def lines(self, mfu: float, gpus: int) -> list[str]:
        """All of it in words."""
        hours = self.gpu_hours(mfu)
        days = hours / gpus / 24
        export = f", an export in bf16 {self.export_bytes / 1e9:,.2f} GB" if self.exports else ""
        return [
            f"at most {self.positions / 1e9:.2f} G positions, padding included, and {self.crops / 1e6:.1f} M crops"
            " (a frame is one)",
            f"{self.operations:.3g} operations: {hours:,.0f} GPU-hours at {mfu:.0%} of {PEAK / 1e12:.0f} TFLOP/s"
            f" (H100, bf16), {days:,.1f} days on {gpus} GPUs",
            f"{self.parameters / 1e9:.3f} G parameters, {self.trained / 1e9:.3f} G of them trained: a checkpoint has"
            f" {self.checkpoint_bytes / 1e9:,.2f} GB{export}",
        ]


def cost_of(config: RunConfig, steps: int) -> Cost:
    """The cost of `steps` steps; the network is built from shapes alone."""
    sequences = steps * config.global_batch
    length = config.data.sequence_length
    crops = config.data.crops_per_sequence
    of_sequence = length * flops_per_token(config.model, length)
    of_sequence += crops * flops_per_crop(config.model)
    if config.model.selection is not None:
        of_sequence += first_pass(config)
    with torch.device("meta"):
        network = Molmo(config.model, config.optim.z_loss)
        lora.adapt(network, config.lora)
    frozen = optim.frozen_names(network, config.optim, config.lora)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    return Cost(
        steps=steps,
        positions=sequences * length,
        crops=sequences * crops,
        operations=sequences * of_sequence,
        parameters=sum(sizes.values()),
        trained=sum(size for name, size in sizes.items() if name not in frozen),
        exports=config.model.family != "hemolmo",
    )


def first_pass(config: RunConfig) -> float:
    """Operations of HeMolmo's first pass over a sequence: forward alone, of a low resolution without the question."""
    text = config.model.text
    side = Geometry.of(config.model).pooled
    tokens = side * (side + 1) + 2  # a column token a row, a start and an end
    return 2 * tokens * text.num_hidden_layers * (attention(text, tokens) + mlp(text))


def steps_of(config: RunConfig, data_is_there: bool) -> tuple[int, str]:
    """Steps of a run, and what they come from."""
    if config.epochs is None:
        return config.max_steps, "max_steps"
    if data_is_there:
        steps = epochs.in_steps(config).max_steps
        return steps, f"{config.epochs:g} epochs of the data that is there"
    steps = epochs.steps_of(config.epochs, CAPTIONS, config.global_batch)
    return steps, f"{config.epochs:g} epochs of {CAPTIONS:,} captions, as the data is not there"
