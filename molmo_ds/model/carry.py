"""The value that flows from row to row of the network, by name.

Shapes: B sequences, T tokens, D decoder width; N crops, P patches of a crop, S = P + class token, C ViT width, M
windows of W patches, R learnt rows, d head width.

A NamedTuple, for the sake of ZeRO-3. DeepSpeed's hooks (0.19.8, runtime/zero/utils.py, apply_to_tensors_only) gather a
layer's parameters for the backward pass at the tensors of its output, and release them at those of its input; they
look for tensors in tuples, lists and dicts only. Tried with two ranks: a NamedTuple comes back as itself, None stays,
each tensor is hooked, also in a tuple inside it; a frozen dataclass is passed on without a hook, and the backward pass
fails on parameters that nobody gathered ("mat2 must be a matrix"). `Shared` is a dataclass for that very reason.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from molmo_ds.batch import Batch


@dataclass(frozen=True)
class Shared:
    """Values shared by the decoder layers of a forward pass; the first layer of a process makes them."""

    plan: Any  # of the attention, as `Attention.core` makes it
    # cosines and sines, float32 [B, T, d], of each scaling that `Rotary` finds in a model
    rotary: tuple[tuple[Tensor, Tensor], ...]


class Carry(NamedTuple):
    """The argument and the result of every row; a field is None before it is made and after its last reader."""

    # of the batch, under the names it has there
    input_ids: Tensor | None = None
    labels: Tensor | None = None
    loss_weights: Tensor | None = None
    position_ids: Tensor | None = None
    document_ids: Tensor | None = None
    branch_ids: Tensor | None = None
    image_ids: Tensor | None = None  # None after the embedding where attention is causal
    learnt_rows: Tensor | None = None
    images: Tensor | None = None
    image_masks: Tensor | None = None
    windows: Tensor | None = None
    image_positions: Tensor | None = None
    # of a batch of HeMolmo
    low_tokens: Tensor | None = None
    candidates: Tensor | None = None
    candidate_places: Tensor | None = None
    picked_tokens: Tensor | None = None
    low_to_high: Tensor | None = None
    query_tokens: Tensor | None = None
    low_length: Tensor | None = None
    # made by rows
    # [N, S, C] each: outputs of ViT blocks that the connector wants
    features: tuple[Tensor, ...] = ()
    image_features: Tensor | None = None  # [M, D]
    hidden: Tensor | None = None  # [N, S, C] in the ViT, [B, T, D] in the decoder
    importance: Tensor | None = None  # [B, T] of each token, 1 where nothing was picked (HeMolmo)
    selection_loss: Tensor | None = None  # scalar
    shared: Shared | None = None

    @classmethod
    def of(cls, batch: Batch) -> "Carry":
        """The argument of the first row."""
        return cls(**{name: tensor for name, tensor in vars(batch).items() if name in cls._fields})
