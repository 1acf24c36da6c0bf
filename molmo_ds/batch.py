"""Sample and Batch: the flat named tensors that data hands to the engine.

Shapes: B packed sequences, T tokens, N real crops of the whole batch, P patches per crop, Q pooled patches per crop.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Sample:
    """One example (one or several images, one or several annotations), tokenised, before it is packed.

    A message tree: the prefix (BOS and images, branch 0) is seen by every branch; branches (1, 2, ...) do not see each
    other. `labels[t]` is the token that should follow `input_ids[t]`; it counts where `loss_weights[t] > 0`.
    """

    input_ids: Tensor  # int64 [t]
    labels: Tensor  # int64 [t], already shifted by one inside each branch
    loss_weights: Tensor  # float32 [t], 0 where nothing is learnt
    position_ids: Tensor  # int64 [t], restarts behind the prefix for every branch
    branch_ids: Tensor  # int32 [t], 0 = prefix
    images: Tensor  # uint8 [n, height, width, 3], or float32 [n, P, patch * patch * 3] in the exact mode; n may be 0
    image_masks: Tensor  # float32 [n, P], share of real pixels per patch (1 real, 0 padding, -1 see legacy_image_mask)
    image_positions: Tensor  # int64 [n, Q], token index inside this sample where a pooled patch is added, -1 = nowhere


@dataclass(frozen=True)
class Batch:
    """B packed sequences and the real crops that belong to them: model arguments, pipeline tuple and checkpoint alike.

    N is at least 1: a batch without pictures carries one blank crop whose positions are all -1, so that every rank runs
    the vision tower in every micro-step (a collective that one rank skips would hang the others).
    """

    input_ids: Tensor  # int64 [B, T]
    labels: Tensor  # int64 [B, T]
    loss_weights: Tensor  # float32 [B, T], 0 on padding
    position_ids: Tensor  # int64 [B, T]
    document_ids: Tensor  # int32 [B, T], 1, 2, ... per packed sample, 0 = padding
    branch_ids: Tensor  # int32 [B, T], 0 = the document's shared prefix
    images: Tensor  # uint8 [N, height, width, 3] or float32 [N, P, patch * patch * 3]
    image_masks: Tensor  # float32 [N, P]
    image_positions: Tensor  # int64 [N, Q], index into the flattened [B * T] tokens, -1 = nowhere
    # int64 [R], the flattened tokens whose weight is not 0, at least one; found where it is not given. It is found on
    # the CPU, where a batch is made: the loss then learns how many rows there are without waiting for a GPU.
    learnt_rows: Tensor | None = None

    def __post_init__(self) -> None:
        if self.learnt_rows is None:
            rows = self.loss_weights.flatten().nonzero()[:, 0]
            object.__setattr__(self, "learnt_rows", rows if len(rows) else rows.new_zeros(1))

    def tensors(self) -> tuple[Tensor, ...]:
        """The fields in order; `Batch(*tensors)` is the inverse."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(T, N, R)."""
        return self.input_ids.shape[1], len(self.images), len(self.learnt_rows)

    def padded(self, tokens: int, crops: int, rows: int = 0) -> "Batch":
        """The same batch with T = tokens, N = crops and R at least `rows`: padding behind each sequence, blank crops
        behind the others, and rows of weight 0 behind those that are learnt."""
        length, more = self.input_ids.shape[1], crops - len(self.images)
        *texts, images, masks, positions, _ = self.tensors()
        texts = [functional.pad(x, (0, tokens - length)) for x in texts]
        positions = torch.where(positions >= 0, positions + positions // length * (tokens - length), -1)
        if more:
            images, masks = (torch.cat((x, x.new_zeros(more, *x.shape[1:]))) for x in (images, masks))
            positions = torch.cat((positions, positions.new_full((more, positions.shape[1]), -1)))
        batch = Batch(*texts, images, masks, positions)
        if (lacking := rows - len(batch.learnt_rows)) <= 0:
            return batch
        still = (batch.loss_weights.flatten() == 0).nonzero()[:lacking, 0]
        return batch.replace(learnt_rows=torch.cat((batch.learnt_rows, still)))

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """The same batch on another device."""
        return Batch(*(t.to(device, non_blocking=non_blocking) for t in self.tensors()))

    def replace(self, **tensors: Tensor) -> "Batch":
        """A copy with some fields replaced; with `loss_weights` the learnt rows are looked for again."""
        rows = None if "loss_weights" in tensors else self.learnt_rows
        return dataclasses.replace(self, **({"learnt_rows": rows} | tensors))

    def weighted(self, factor: Tensor | float) -> "Batch":
        """A copy whose loss weights are multiplied by a number, which may lie on their device."""
        return self.replace(loss_weights=self.loss_weights * factor, learnt_rows=self.learnt_rows)
