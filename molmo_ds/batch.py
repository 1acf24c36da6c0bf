"""Sample, Batch and Carry: the flat named tensors that data hands to the engine, and rows of the network to each other.

Shapes: B packed sequences, T tokens, N real crops of the whole batch, P patches per crop, M windows of W patches, R
learnt rows; of the network, D decoder width, d head width, S = P + class token, C ViT width.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from molmo_ds import block

MISSING = -1  # a patch that a window lacks, and the token of a window that is added to none


@dataclass(frozen=True)
class Kind:
    """How a tensor of a Batch is padded, joined and shared out among ranks."""

    counts: Literal["token", "crop", "window"]  # it has one entry for each
    padding: int  # what entries hold that are added
    # of a tensor of `padding` in place of one that is left out; None = it must be given
    left_out: torch.dtype | None


def per_token(left_out: torch.dtype | None = None) -> Any:
    """The field of a tensor [t] in a Sample and [B, T] in a Batch, padded with 0; sequence parallelism cuts it.

    Args:
        left_out: its type, where 0 says nothing: it may be left out then.
    """
    return _of_kind(Kind("token", 0, left_out))


def per_crop(left_out: torch.dtype | None = None) -> Any:
    """The field of a tensor [n, ...] in a Sample and [N, ...] in a Batch, padded with 0; it goes where its crop goes.

    Args:
        left_out: as of `per_token`; the tensor is then [n].
    """
    return _of_kind(Kind("crop", 0, left_out))


def per_window(padding: int = 0, left_out: torch.dtype | None = None) -> Any:
    """The field of a tensor [m, ...] in a Sample and [M, ...] in a Batch; it goes where its window's crops go.

    Args:
        padding: what windows hold that are added.
        left_out: as of `per_token`; the tensor is then [m].
    """
    return _of_kind(Kind("window", padding, left_out))


def _of_kind(kind: Kind) -> Any:
    if kind.left_out is None:
        return field(metadata={"kind": kind})
    return field(default=None, metadata={"kind": kind})


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The tensors that a Sample has and a Batch joins: [t] becomes [B, T], and n and m become N and M.

    `labels[t]` is the token that should follow `input_ids[t]`; it counts where `loss_weights[t] > 0`.
    """

    input_ids: Tensor = per_token()  # int64
    labels: Tensor = per_token()  # int64, already shifted by one inside each branch
    loss_weights: Tensor = per_token()  # float32, 0 where nothing is learnt and on padding
    position_ids: Tensor = per_token()  # int64, restarts after the prefix for every branch
    branch_ids: Tensor = per_token()  # int32, 0 = prefix
    # int32, equal for tokens of pictures that see each other, 0 = text
    image_ids: Tensor = per_token(left_out=torch.int32)
    # uint8 [n, height, width, 3], or float32 [n, P, patch * patch * 3] in the exact mode
    images: Tensor = per_crop()
    # float32 [n, P], share of real pixels per patch (1 real, 0 padding, -1 see legacy_image_mask)
    image_masks: Tensor = per_crop()
    # int64 [m, W], patches that are pooled together: crop * P + patch, -1 = a patch that is missing
    windows: Tensor = per_window(MISSING)
    # int64 [m], token to which a window is added, counted through all rows of a batch, -1 = none
    image_positions: Tensor = per_window(MISSING)

    def __post_init__(self) -> None:
        # filled before anyone sees it: to all others it is frozen
        for name, kind in LEFT_OUT.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, self._nothing(kind))

    def _nothing(self, kind: Kind) -> Tensor:
        counted = {
            "token": self.input_ids,
            "crop": self.image_masks[:, 0],
            "window": self.image_positions,
        }
        return torch.full_like(counted[kind.counts], kind.padding, dtype=kind.left_out)

    def __reduce__(self) -> "Pickled":
        return _pickled(self)


@dataclass(frozen=True, kw_only=True)
class Sample(Contents):
    """One example (one or several images, one or several annotations), tokenised, before it is packed.

    A message tree: the prefix (BOS and images, branch 0) is seen by every branch; branches (1, 2, ...) do not see each
    other. There may be no crop (n = 0).
    """

    @property
    def reach(self) -> int:
        """Positions up to that of a prompt's last token: its tokens, and HeMolmo's windows that are not shown."""
        # by numpy, for which one token is cheap
        return int(self.position_ids.numpy()[-1]) + 1


@dataclass(frozen=True, kw_only=True)
class SelectionSample(Sample):
    """A sample of HeMolmo: its windows are l of the low resolution, each added to a token, then h of the high one.

    The k tokens that show the high resolution are filled with the best of its windows, so k <= h.
    """

    low_tokens: Tensor  # int64 [l], the token of each low window
    picked_tokens: Tensor  # int64 [k], best first
    candidate_places: Tensor  # int64 [h], row * (columns + 1) + column of each high window
    low_to_high: Tensor  # float32 [4 * l, h], share of each of four scores in that of a high window
    query_token: int  # the token before the low resolution's end
    low_length: int  # tokens up to that end


@dataclass(frozen=True, kw_only=True)
class Batch(Contents):
    """B packed sequences and the real crops that belong to them.

    N and M are at least 1: a batch without pictures carries one blank crop and one window of -1 that is added nowhere,
    so that every rank runs the vision tower in every micro-step (a collective that one rank skips would hang the
    others).
    """

    # int32 [B, T], 1, 2, ... per packed sample, 0 = padding
    document_ids: Tensor = per_token()
    learnt_rows: Tensor  # int64 [R], flattened tokens that reach the loss: see `learnt_rows_of`

    def tensors(self) -> tuple[Tensor, ...]:
        """The fields in order."""
        return tuple(vars(self).values())

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """(T, N, M, W, R)."""
        return (
            self.input_ids.shape[1],
            len(self.images),
            *self.windows.shape,
            len(self.learnt_rows),
        )

    def padded(
        self, tokens: int, crops: int, windows: int = 0, patches: int = 0, rows: int = 0
    ) -> "Batch":
        """The same batch with T = tokens, and N, M, W and R at least as large as said.

        Padding follows each sequence, blank crops and windows of -1 follow the others, and rows of weight 0 follow
        those that are learnt.
        """
        length = self.input_ids.shape[1]
        weights = functional.pad(self.loss_weights, (0, tokens - length))
        learnt = _moved(self.learnt_rows, length, tokens)
        lacking = rows - len(learnt)
        if lacking > 0:
            others = (weights.flatten() == 0).nonzero()[:lacking, 0]
            learnt = torch.cat((learnt, others))
        lacking = max(0, patches - self.windows.shape[1])
        parts = vars(self) | {
            "windows": functional.pad(self.windows, (0, lacking), value=MISSING),
            "image_positions": _moved(self.image_positions, length, tokens),
        }
        padded = {name: functional.pad(parts[name], (0, tokens - length)) for name in PER_TOKEN}
        for names, count in ((PER_CROP, crops), (PER_WINDOW, windows)):
            padded |= {name: _longer(parts[name], count, KINDS[name].padding) for name in names}
        return self.replace(**padded, learnt_rows=learnt)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device; the host does not wait for it.

        From pageable memory it would: a copy to a GPU then first waits for what the GPU has to do.
        """
        tensors = vars(self)
        if torch.device(device).type == "cuda":
            tensors = {name: pinned(tensor) for name, tensor in tensors.items()}
        return self.replace(
            **{name: x.to(device, non_blocking=True) for name, x in tensors.items()}
        )

    def replace(self, **tensors: Tensor) -> "Batch":
        """A copy with some fields replaced; see `reweighted` for loss weights."""
        return dataclasses.replace(self, **tensors)

    def weighted(self, factor: Tensor | float) -> "Batch":
        """A copy with its loss weights multiplied by a number, or by a scalar on their device."""
        return self.replace(loss_weights=self.loss_weights * factor)

    def reweighted(self, loss_weights: Tensor) -> "Batch":
        """A copy with other loss weights [B, T], and the rows that are learnt with them."""
        return self.replace(loss_weights=loss_weights, learnt_rows=learnt_rows_of(loss_weights))


# of the fields above, from which all that follows is read: how a batch is packed, joined, padded, cut and dealt out
KINDS: dict[str, Kind] = {
    one.name: one.metadata["kind"] for one in fields(Batch) if "kind" in one.metadata
}
# the names of tensors [B, T], [N, ...] and [M, ...]; a Sample has all of them but document_ids
PER_TOKEN = tuple(name for name, kind in KINDS.items() if kind.counts == "token")
PER_CROP = tuple(name for name, kind in KINDS.items() if kind.counts == "crop")
PER_WINDOW = tuple(name for name, kind in KINDS.items() if kind.counts == "window")
LEFT_OUT = {name: kind for name, kind in KINDS.items() if kind.left_out is not None}
# what tokens are marked with, 0 where there is nothing to say of them, as of all tokens of an answer
MARKS = tuple(name for name in PER_TOKEN if name in LEFT_OUT)


@dataclass(frozen=True, kw_only=True)
class SelectionBatch(Batch):
    """A batch of HeMolmo, one sample a row: every window is scored, and the best are added to the picture tokens.

    `windows` are those of the low and of the high resolution; `image_positions` place those of the low one. L windows
    of the low resolution, H of the high one and K picks of each row, at most.
    """

    low_tokens: Tensor  # int64 [B, L], token of each low window in its row, -1 = none
    candidates: Tensor  # int64 [B, H], the high windows among the M, -1 = none
    candidate_places: Tensor  # int64 [B, H], added to the position of the token that shows it
    # int64 [B, K], tokens in the row that show the picks, best first, -1 = none
    picked_tokens: Tensor
    low_to_high: Tensor  # float32 [B, 4 * L, H], share of each score in that of a high window
    query_tokens: Tensor  # int64 [B], the token before the low resolution's end
    low_length: Tensor  # int64 [], tokens of the longest row up to the low resolution's end


@dataclass(frozen=True)
class Shared:
    """Values shared by the decoder layers of a forward pass; the first layer of a process makes them.

    A dataclass, so that ZeRO-3's hooks pass it on as it is: see `Carry`.
    """

    plan: Any  # of the attention, as `Attention.core` makes it
    # cosines and sines, float32 [B, T, d], of each scaling that `Rotary` finds in a model
    rotary: tuple[tuple[Tensor, Tensor], ...]


class Carry(NamedTuple):
    """The argument and the result of every row; a field is None before it is made and after its last reader.

    A NamedTuple, for the sake of ZeRO-3. DeepSpeed's hooks (0.19.8, runtime/zero/utils.py, apply_to_tensors_only)
    gather a layer's parameters for the backward pass at the tensors of its output, and release them at those of its
    input; they look for tensors in tuples, lists and dicts only. Tried with two ranks: a NamedTuple comes back as
    itself, None stays, each tensor is hooked, also in a tuple inside it; a frozen dataclass is passed on without a
    hook, and the backward pass fails on parameters that nobody gathered ("mat2 must be a matrix").
    """

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
        return cls(**vars(batch))


# what pickle keeps of a Sample or a Batch: the function that makes it again, and its arguments
Pickled = tuple[Callable, tuple[type, dict[str, int], list[block.Place], Tensor]]


def _pickled(one: Sample | Batch) -> Pickled:
    tensors = {name: x for name, x in vars(one).items() if isinstance(x, Tensor)}
    numbers = {name: x for name, x in vars(one).items() if name not in tensors}
    return _unpickled, (type(one), numbers, *block.pack(tensors))


def _unpickled(
    kind: type[Sample] | type[Batch],
    numbers: dict[str, int],
    places: list[block.Place],
    memory: Tensor,
) -> Sample | Batch:
    return kind(**block.unpack(places, memory), **numbers)


def pinned(tensor: Tensor) -> Tensor:
    """The tensor in memory that a GPU reads by itself, where it lies on the CPU."""
    return tensor if tensor.is_cuda else tensor.pin_memory()


def learnt_rows_of(loss_weights: Tensor) -> Tensor:
    """int64 [R], the flattened tokens of [B, T] whose weight is not 0; token 0 where there is none.

    It is made on the CPU with the batch: the loss then knows how many rows there are without waiting for a GPU.
    """
    rows = loss_weights.flatten().nonzero()[:, 0]
    return rows if len(rows) else rows.new_zeros(1)


def windows_of(crops: int, grid: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """int64 [crops * Q, size * size], whole crops of grid * grid patches cut into Q windows each, row by row.

    Patches beyond the right and bottom edge of an uneven grid are missing.
    """
    side = -(-grid // size)
    lacking = side * size - grid
    patches = torch.arange(crops * grid * grid, device=device).view(crops, grid, grid)
    patches = functional.pad(patches, (0, lacking, 0, lacking), value=MISSING)
    windows = patches.view(crops, side, size, side, size).transpose(2, 3)
    return windows.reshape(-1, size * size)


def last_tokens(batch: Batch) -> Tensor:
    """int64 [N], the last token to which a patch of each crop is added, -1 where there is none."""
    count, patches = batch.image_masks.shape
    there = (batch.windows >= 0) & (batch.image_positions >= 0)[:, None]
    crop = torch.where(there, batch.windows // patches, count)
    token = batch.image_positions[:, None].expand_as(crop)
    last = token.new_full((count + 1,), MISSING)  # the row after the last takes what is missing
    return last.scatter_reduce(0, crop.flatten(), token.flatten(), "amax")[:count]


def shifted(index: Tensor, by: Tensor | int) -> Tensor:
    """An index moved on by `by`; what is missing stays missing."""
    return torch.where(index >= 0, index + by, MISSING)


def _moved(index: Tensor, length: int, tokens: int) -> Tensor:
    # indices into B * length flattened tokens as indices into B * tokens
    return shifted(index, index // length * (tokens - length))


def _longer(x: Tensor, count: int, value: int) -> Tensor:
    lacking = count - len(x)
    if lacking <= 0:
        return x
    more = x.new_full((lacking, *x.shape[1:]), value)
    return torch.cat((x, more))
