"""Which panels of keys the blocks of queries of a plan see: what the CPU's own attention reads (`attention.cpp`).

A block sees a panel as a whole, or not at all, or has a word for each of its queries, whose bits are the panel's keys.
No mask of queries by keys is made: most panels are decided by the smallest and the largest id in them.

Shapes: B sequences, T queries, S keys, N blocks of a sequence, P panels, M panels that are seen,
U of them with words.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from molmo_ds.ops.tree_attention.reference import rule

# as in attention.cpp
QUERIES = 48  # of a block
KEYS = 32  # of a panel

Place = tuple[Tensor, ...]  # int64 [u] each: sequence, block and panel


@dataclass(frozen=True)
class Panels:
    """The panels that blocks of queries see, block after block."""

    begins: Tensor  # int64 [B, N + 1], where each block's panels begin, and the last one's end
    panels: Tensor  # int64 [M, 2]: number, and where the words of the block's queries begin, -1 where all see all
    words: Tensor  # int32 [U * QUERIES], of the keys that a query sees


@dataclass(frozen=True)
class Range:
    """The smallest and the largest id of each part of a sequence."""

    low: Tensor
    high: Tensor

    def is_only(self, number: int) -> Tensor:
        """Where there is no other id."""
        return (self.low == number) & (self.high == number)


def of_ids(document_ids: Tensor, branch_ids: Tensor, image_ids: Tensor | None) -> Panels:
    """Those of message trees with these ids, int [B, T]."""
    ids = (document_ids, branch_ids, image_ids)
    whole, hidden = _decided(*ids)
    at = (~(whole | hidden)).nonzero(as_tuple=True)
    return _listed(whole, at, _seen(ids, at))


@functools.lru_cache(maxsize=16)
def all_seen(sequences: int, tokens: int) -> Panels:
    """Those of queries that all see all, as the patches of a crop do."""
    whole, rest = divmod(tokens, KEYS)
    blocks = -(-tokens // QUERIES)
    each = whole + (rest > 0)
    begins = _cpu(sequences)[:, None] * blocks * each + _cpu(blocks + 1) * each
    number = _cpu(each)
    # one word serves every query: of the last panel, the keys that are there
    listed = torch.stack((number, torch.where(number < whole, -1, 0)), 1)
    words = torch.full((QUERIES,), (1 << rest) - 1, dtype=torch.int32, device="cpu")
    return Panels(begins, listed.repeat(sequences * blocks, 1), words)


def _decided(
    document_ids: Tensor, branch_ids: Tensor, image_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Whether all queries of a block see all keys of a panel, and whether none sees any, bool [B, N, P] each."""
    tokens = document_ids.shape[1]
    block = _cpu(0, tokens, QUERIES)[:, None]
    panel = _cpu(0, tokens, KEYS)
    after = panel >= block + QUERIES
    before = panel + KEYS - 1 <= block
    documents = _of_blocks(document_ids), _of_panels(document_ids)
    branches = _of_blocks(branch_ids), _of_panels(branch_ids)
    padding = documents[1].is_only(0)
    prefix = branches[1].is_only(0)
    one_tree = _same(*documents) & ~padding
    whole = before & one_tree & (prefix | _same(*branches))
    hidden = _apart(*documents) | padding
    hidden |= _apart(*branches) & (branches[1].low > 0)
    if image_ids is None:
        hidden = hidden | after
    else:
        images = _of_blocks(image_ids), _of_panels(image_ids)
        hidden |= after & (_apart(*images) | images[1].is_only(0))
    # a query sees itself
    return whole, hidden & (after | before)


def _seen(ids: tuple[Tensor, Tensor, Tensor | None], at: Place) -> Tensor:
    """What the queries of u blocks see of a panel each, bool [u, QUERIES, KEYS]."""
    row, number, key = at
    last = ids[0].shape[1] - 1
    queries = (number[:, None] * QUERIES + _cpu(QUERIES))[:, :, None]
    keys = (key[:, None] * KEYS + _cpu(KEYS))[:, None]
    there = (queries <= last) & (keys <= last)
    sees = rule(*ids)
    of_rule = sees(row[:, None, None], None, queries.clamp(max=last), keys.clamp(max=last))
    return there & of_rule


def _listed(whole: Tensor, at: Place, seen: Tensor) -> Panels:
    """The panels that are seen as a whole, and those of which something is."""
    some = seen.flatten(1).any(1)
    seen = seen[some]
    bits = seen.int() << _cpu(KEYS).int()
    words = bits.sum(-1, dtype=torch.int32)
    begin = torch.full(whole.shape, -1, device="cpu")
    begin[tuple(x[some] for x in at)] = _cpu(len(seen)) * QUERIES
    listed = whole | (begin >= 0)
    counts = listed.sum(2)  # [B, N]
    ends = counts.flatten().cumsum(0).view(counts.shape)
    begins = torch.cat(((ends - counts)[:, :1], ends), 1)
    panels = torch.stack((listed.nonzero()[:, 2], begin[listed]), 1)
    return Panels(begins.contiguous(), panels.contiguous(), words.flatten().contiguous())


def _cpu(*bounds: int) -> Tensor:
    # whatever the default device
    return torch.arange(*bounds, device="cpu")


def _of_blocks(ids: Tensor) -> Range:
    low, high = _parts(ids, QUERIES)
    return Range(low[:, :, None], high[:, :, None])


def _of_panels(ids: Tensor) -> Range:
    low, high = _parts(ids, KEYS)
    return Range(low[:, None], high[:, None])


def _parts(ids: Tensor, size: int) -> tuple[Tensor, Tensor]:
    # the last part is made longer by its last id
    rows, tokens = ids.shape
    parts = -(-tokens // size)
    index = _cpu(parts * size).clamp(max=tokens - 1)
    return torch.aminmax(ids[:, index].view(rows, parts, size), dim=2)


def _same(block: Range, panel: Range) -> Tensor:
    """Whether all ids of both are one."""
    return (block.low == block.high) & (panel.low == panel.high) & (block.low == panel.low)


def _apart(block: Range, panel: Range) -> Tensor:
    """Whether none of the one can be among the other's."""
    return (block.high < panel.low) | (panel.high < block.low)
