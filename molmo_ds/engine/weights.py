"""One loss for every strategy: the mean over all weighted tokens of the global batch, and what a step counts."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from molmo_ds.batch import Batch
from molmo_ds.config import MolmoConfig

COUNTS = ("weight", "tokens", "learnt_tokens", "positions", "crops", "documents", "images")


@dataclass(frozen=True)
class Totals:
    """Sums over the global batch of one step."""

    weight: float  # of loss weights
    tokens: float  # that are not padding
    learnt_tokens: float
    positions: float  # tokens and padding
    crops: float  # that belong to a document
    documents: float
    images: float  # pictures, by the tokens they begin with; a frame of a video counts as a picture shown once does


def scale(
    micro_batches: list[Batch],
    replicas: int,
    group: dist.ProcessGroup | None,
    device: torch.device,
    model: MolmoConfig,
) -> tuple[list[Batch], Totals]:
    """Divide every loss weight by the mean over ranks of their sum, with one all-gather.

    DeepSpeed averages gradients over `replicas` ranks; a sum over this rank's micro-batches (each backward pass with
    `scale_wrt_gas=False`) is then the gradient of the global weighted mean, whatever the ranks, the accumulation and
    the packing. A step in which nothing is learnt has weights 0 and not a division by 0. A rank with fewer
    micro-batches than another (it needs one) runs its last one again with weights 0, or the others would wait for it.
    """
    sums = torch.stack([_counts(batch, model) for batch in micro_batches]).sum(0)
    mine = torch.cat([sums, sums.new_tensor([len(micro_batches)])]).to(device)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, mine, group=group)
    counts = torch.stack(every).cpu()
    totals, most = Totals(*counts[:, :-1].sum(0).tolist()), int(counts[:, -1].max())
    factor = replicas / totals.weight if totals.weight > 0 else 0.0
    scaled = [batch.replace(loss_weights=batch.loss_weights * factor) for batch in micro_batches]
    idle = scaled[-1].replace(loss_weights=torch.zeros_like(scaled[-1].loss_weights))
    return scaled + [idle] * (most - len(scaled)), totals


def _counts(batch: Batch, model: MolmoConfig) -> torch.Tensor:
    real = batch.document_ids > 0
    views = 1 if model.images.crop_mode == "resize" else 2  # the whole picture, and its crops
    return torch.stack(
        [
            batch.loss_weights.double().sum(),
            real.sum().double(),
            (batch.loss_weights > 0).sum().double(),
            torch.tensor(float(real.numel()), dtype=torch.float64, device=real.device),
            (batch.image_positions >= 0).any(1).sum().double(),
            batch.document_ids.amax(1).sum().double(),
            (batch.input_ids == model.text.vocab_size).sum().double() / views,
        ]
    )
