"""Masked attention on the CPU by PyTorch's kernels: blocks of queries against only the keys that one of them sees.

Its flash kernel for the CPU takes one mask and works through all of it; causal order, packing and message trees
leave a half to a tenth of that to do. The heads of a group are folded into the queries, so keys are never repeated.
Of long sequences the masks of all blocks together would be larger than the network, so each is made when it is needed.

Shapes: B sequences, H heads, G key-value heads, R = H / G, T tokens, d head width, t queries of a block, s its keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from molmo_ds.ops.tree_attention import flash_cpu, reference

BLOCK = 96  # queries; on an AMD EPYC core 64 to 128 take the same time and 256 a tenth more
GAP = 32  # no more unseen keys than this between two runs of keys are taken along
Runs = tuple[tuple[int, int], ...]
TYPES = (torch.float32, torch.bfloat16)
WORTH = 0.8  # of the whole mask; above, one call for all is faster
LONG = 8192  # tokens from which on no mask is kept; that of 8,192 takes 256 MiB in fp32


@dataclass(frozen=True)
class Block:
    """Queries begin:end of one sequence and the keys they see."""

    row: int
    begin: int
    end: int
    keys: Runs  # ascending


@dataclass(frozen=True)
class Blocks:
    """The blocks of one mask, whose parts [t, s] are kept or, of long sequences, made from the ids at each use."""

    blocks: tuple[Block, ...]
    dtype: torch.dtype  # of the queries; the parts are float32
    kept: tuple[Tensor, ...] = ()
    ids: tuple[Tensor, Tensor, Tensor | None] | None = None  # of documents, branches and images
    # by R, [1, 1, R * t, s] of each block
    folded: dict[int, list[Tensor]] = field(default_factory=dict)

    def masks(self, group: int) -> Iterator[Tensor]:
        """[1, 1, R * t, s] of each block for R = `group` heads folded into the queries."""
        if self.ids is not None:
            return (_fold(self._made(block), group) for block in self.blocks)
        if group not in self.folded:  # for the first layer that asks
            self.folded[group] = [_fold(mask, group) for mask in self.kept]
        return iter(self.folded[group])

    def _made(self, block: Block) -> Tensor:
        seen = _rows(self.ids, block.begin, block.end)[block.row]
        keys = _join(seen, block.keys, 1)
        return _additive(keys)


def cut(mask: Tensor) -> Blocks | None:
    """The blocks of a mask [B, 1, T, T] of 0 and -inf; None where they do not pay."""
    rows, _, tokens, _ = mask.shape
    blocks = []
    area = 0
    for begin in range(0, tokens, BLOCK):
        end = min(begin + BLOCK, tokens)
        seen = mask[:, 0, begin:end].amax(1) == 0  # [B, T]
        for row in range(rows):
            runs = _runs(seen[row])
            keys = sum(last - first for first, last in runs)
            blocks.append(Block(row, begin, end, runs))
            area += (end - begin) * keys
    if area > WORTH * rows * tokens * tokens:
        return None
    kept = []
    for one in blocks:
        of_queries = mask[one.row, 0, one.begin : one.end]
        part = _join(of_queries, one.keys, 1)
        kept.append(part.float().contiguous())
    return Blocks(tuple(blocks), mask.dtype, tuple(kept))


def of_ids(
    document_ids: Tensor,
    branch_ids: Tensor,
    image_ids: Tensor | None,
    dtype: torch.dtype,
) -> Blocks:
    """The blocks for ids int [B, T] of long sequences; no mask is larger than one block's."""
    ids = (document_ids, branch_ids, image_ids)
    rows, tokens = document_ids.shape
    blocks = []
    for begin in range(0, tokens, BLOCK):
        end = min(begin + BLOCK, tokens)
        seen = _rows(ids, begin, end).any(1)  # [B, T]
        blocks += [Block(row, begin, end, _runs(seen[row])) for row in range(rows)]
    return Blocks(tuple(blocks), dtype, ids=ids)


def _rows(ids: tuple[Tensor, Tensor, Tensor | None], begin: int, end: int) -> Tensor:
    """bool [B, t, T], what the queries begin:end see."""
    rows, tokens = ids[0].shape
    keys = torch.arange(tokens)
    queries = keys[begin:end, None]
    row = torch.arange(rows)[:, None, None]
    sees = reference.rule(*ids)
    return sees(row, None, queries, keys)


def _runs(seen: Tensor) -> Runs:
    """Runs of the keys [T] that a block sees, with short gaps between them."""
    columns = seen.nonzero()[:, 0]
    steps = columns[1:] - columns[:-1]
    breaks = (steps > GAP).nonzero()[:, 0]
    firsts = torch.cat((columns[:1], columns[breaks + 1]))
    lasts = torch.cat((columns[breaks], columns[-1:]))
    ends = lasts + 1
    return tuple(zip(firsts.tolist(), ends.tolist()))


def _additive(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))


def _fold(mask: Tensor, group: int) -> Tensor:
    return mask.repeat(group, 1)[None, None]


def _join(x: Tensor, runs: tuple[tuple[int, int], ...], dim: int) -> Tensor:
    parts = [x.narrow(dim, a, b - a) for a, b in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: Blocks) -> Tensor:
        heads, _, width = q.shape[1:]
        groups = k.shape[1]
        out = torch.empty_like(q)
        sums = []
        masks = blocks.masks(heads // groups)
        for block, mask in zip(blocks.blocks, masks):
            folded = _folded(block, q, groups)
            keys = _seen(block, k)
            values = _seen(block, v)
            part, lse = flash_cpu.forward(folded, keys, values, mask)
            out[block.row, :, block.begin : block.end] = part.reshape(heads, -1, width)
            sums.append(lse)
        ctx.save_for_backward(q, k, v, out, *sums)
        ctx.blocks = blocks
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: recomputation gives each only once
        sums = saved[4:]
        given = of_out.dtype
        # cast whole, not block by block
        q, k, v, out, of_out = (flash_cpu.wide(x) for x in (*saved[:4], of_out))
        heads, _, width = q.shape[1:]
        groups = k.shape[1]
        of_q = torch.empty_like(q)
        of_k = torch.zeros_like(k)
        of_v = torch.zeros_like(v)
        masks = ctx.blocks.masks(heads // groups)
        for block, mask, lse in zip(ctx.blocks.blocks, masks, sums):
            of_folded, of_keys, of_values = flash_cpu.backward(
                _folded(block, of_out, groups),
                _folded(block, q, groups),
                _seen(block, k),
                _seen(block, v),
                _folded(block, out, groups),
                lse,
                mask,
            )
            of_q[block.row, :, block.begin : block.end] = of_folded.reshape(heads, -1, width)
            at = 0
            for first, last in block.keys:
                end = at + last - first
                of_k[block.row, :, first:last] += of_keys[0, :, at:end]
                of_v[block.row, :, first:last] += of_values[0, :, at:end]
                at = end
        return of_q.to(given), of_k.to(given), of_v.to(given), None


def _folded(block: Block, x: Tensor, groups: int) -> Tensor:
    # a block's queries, [B, H, T, d] -> [1, G, R * t, d]
    queries = x[block.row, :, block.begin : block.end]
    return queries.reshape(1, groups, -1, x.shape[-1])


def _seen(block: Block, x: Tensor) -> Tensor:
    # the keys that they see, or these' values, [B, G, T, d] -> [1, G, s, d]
    row = x[block.row][None]
    return _join(row, block.keys, 2)


def usable(q: Tensor, blocks: object, dropout_p: float) -> bool:
    """Whether `attention` takes these: a CPU, blocks of q's type, no dropout, nothing that is compiled."""
    if (
        not isinstance(blocks, Blocks)
        or dropout_p
        or q.device.type != "cpu"
        or torch.compiler.is_compiling()
    ):
        return False
    return q.dtype in TYPES and blocks.dtype == q.dtype


def attention(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks) -> Tensor:
    """q [B, H, T, d], k and v [B, G, T, d], blocks of their mask -> [B, H, T, d]."""
    return _Blocks.apply(q, k, v, blocks)
