"""One loss for every strategy: the mean over all weighted tokens of the global batch, and what a step counts."""

import torch
import torch.distributed as dist
from torch import Tensor

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Batch, last_tokens, pinned
from molmo_ds.ops.tree_attention.pairs import visible_pairs

# sums over the global batch of one step: loss weights; tokens that are not padding; positions = tokens and padding;
# crops that belong to a document; images = pictures, by the tokens they begin with (a frame of a video counts as a
# picture shown once does); pairs of tokens that see each other; windows that are added to a token (HeMolmo's all), and
# their patches
COUNTS = (
    "weight",
    "tokens",
    "learnt_tokens",
    "positions",
    "crops",
    "documents",
    "images",
    "visible_pairs",
    "windows",
    "pooled_patches",
)


def scale(
    micro_batches: list[Batch],
    replicas: int,
    group: dist.ProcessGroup | None,
    device: torch.device,
    model: MolmoConfig,
) -> tuple[Tensor, Tensor]:
    """The factor of every loss weight, and COUNTS, both float64 on `device` and not waited for; one all-reduce.

    DeepSpeed averages gradients over `replicas` ranks; with weights divided by the mean over ranks of their sum, a sum
    over this rank's micro-batches (each backward pass with `scale_wrt_gas=False`) is then the gradient of the global
    weighted mean, whatever the ranks, the accumulation and the packing. A step in which nothing is learnt has the
    factor 0 and not a division by 0.
    """
    counts = torch.stack([_counts(batch, model) for batch in micro_batches]).sum(0)
    if device.type == "cuda":
        counts = pinned(counts).to(device, non_blocking=True)
    if replicas > 1:
        dist.all_reduce(counts, group=group)
    return torch.where(counts[0] > 0, replicas / counts[0], 0.0), counts


def fill(micro_batches: list[Batch], steps: int) -> list[Batch]:
    """The micro-batches, filled up to the number that every rank runs with copies of the last one, weights 0.

    A collective that one rank comes to less often than the others would hang them.
    """
    assert 0 < len(micro_batches) <= steps, (
        f"{len(micro_batches)} micro-batches in a step of {steps}"
    )
    if len(micro_batches) == steps:
        return micro_batches
    last = micro_batches[-1]
    idle = last.reweighted(torch.zeros_like(last.loss_weights))
    return micro_batches + [idle] * (steps - len(micro_batches))


def _counts(batch: Batch, model: MolmoConfig) -> Tensor:
    real = batch.document_ids > 0
    views = 1
    first = [0]  # special tokens, counted from vocab_size, that begin a view of a picture
    if model.family == "molmo2":
        first = [4, 7]  # the low resolution of a picture, and a frame
    elif model.images.crop_mode != "resize":
        views = 2  # the whole picture, and its crops
    begun = torch.isin(
        batch.input_ids, torch.tensor(first, device=real.device) + model.text.vocab_size
    )
    crops = (last_tokens(batch) >= 0).sum()
    there = (batch.windows >= 0) & (batch.image_positions >= 0)[:, None]
    if (
        model.selection is not None
    ):  # whose tokens show windows of any crop; a blank one is all padding
        there = batch.windows >= 0
        crops = (batch.image_masks > 0).any(1).sum()
    pictures = None if model.text.image_attention == "causal" else batch.image_ids
    return torch.stack(
        [
            batch.loss_weights.double().sum(),
            real.sum().double(),
            (batch.loss_weights > 0).sum().double(),
            torch.tensor(float(real.numel()), dtype=torch.float64, device=real.device),
            crops.double(),
            batch.document_ids.amax(1).sum().double(),
            begun.sum().double() / views,
            visible_pairs(batch.document_ids, batch.branch_ids, pictures),
            there.any(1).sum().double(),
            there.sum().double(),
        ]
    )
