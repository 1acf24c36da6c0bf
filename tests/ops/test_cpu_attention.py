"""The CPU's own attention over blocks of a mask, beside float64 with all of it: trees, padding, groups, threads."""

import shutil

import pytest
import torch
from ops_check import error
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.ops import cpu_library
from molmo_ds.ops.tree_attention import kernels_cpu, mask_blocks, reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

LIMIT = 2e-6


def ids(kind: str, tokens: int) -> tuple[Tensor, Tensor]:
    """Documents and branches [2, T]; the second sequence is another than the first."""
    documents = torch.ones(2, tokens, dtype=torch.int32)
    branches = torch.zeros(2, tokens, dtype=torch.int32)
    if kind == "tree":  # a prefix of a third, then branches of unlike lengths
        for row, steps in enumerate((5, 3)):
            branches[row, tokens // 3 :] = 1 + torch.arange(tokens - tokens // 3) // (
                tokens // steps
            )
    if kind == "documents":
        documents += (torch.arange(tokens) // (tokens // 4)).int()
        documents[1, tokens - 40 :] = 0  # padding
    return documents, branches


def tensors(heads: int, groups: int, tokens: int, width: int) -> list[Tensor]:
    """q, k, v and the gradient of the result, as projections and rotations leave them."""
    torch.manual_seed(0)
    q = torch.randn(2, heads, tokens, width)
    k = torch.randn(2, groups, tokens, width)
    v, slope = (torch.randn(2, tokens, n, width).transpose(1, 2) for n in (groups, heads))
    return [q, k, v, slope]


def learnt(run: object, q: Tensor, k: Tensor, v: Tensor, slope: Tensor) -> tuple[Tensor, ...]:
    """The result and the gradients of q, k and v."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = run(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, slope)


def in_double(mask: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    times = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(times, 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, mask.to(q.dtype))


@pytest.mark.parametrize("kind", ["causal", "tree", "documents"])
@pytest.mark.parametrize(
    ("heads", "groups", "tokens", "width"),
    [(4, 2, 400, 16), (8, 2, 513, 32), (2, 2, 300, 64), (6, 1, 257, 80), (3, 3, 391, 128)],
)
def test_blocks(kind: str, heads: int, groups: int, tokens: int, width: int) -> None:
    assert cpu_library.load() is not None
    document_ids, branch_ids = ids(kind, tokens)
    mask = reference.attention_plan(document_ids, branch_ids, torch.float32, None).mask
    blocks = mask_blocks.cut(mask)
    assert blocks is not None
    x = tensors(heads, groups, tokens, width)
    assert kernels_cpu.usable(*x[:3])
    assert all(begin % kernels_cpu.PANEL == 0 for begin, _ in blocks.table.runs.tolist())
    wanted = learnt(lambda *qkv: in_double(mask, *qkv), *(t.double() for t in x))
    found = learnt(lambda *qkv: mask_blocks.attention(*qkv, blocks), *x)
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) <= LIMIT
    with torch.no_grad():
        assert torch.equal(mask_blocks.attention(*x[:3], blocks), found[0])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    again = learnt(lambda *qkv: mask_blocks.attention(*qkv, blocks), *x)
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_a_query_that_sees_nothing() -> None:
    q, k, v, slope = tensors(2, 1, 70, 16)
    mask = torch.full((2, 1, 70, 70), -torch.inf)
    mask[0, 0, 5:, :64] = 0
    runs = [(0, 0, 70, ((0, 64),)), (1, 0, 70, ())]
    blocks = kernels_cpu.table(
        runs, [mask[0, 0, :, :64].contiguous(), mask[1, 0, :, :0].contiguous()]
    )
    found = learnt(lambda *qkv: kernels_cpu.attention(*qkv, blocks), q, k, v, slope)
    for x in found:
        assert x.isfinite().all() and (x[1] == 0).all()
    assert (found[0][0, :, :5] == 0).all() and (found[1][0, :, :5] == 0).all()
    assert (found[2][0, :, 64:] == 0).all() and (found[3][0, :, 64:] == 0).all()
    part = [x[:1, :, 5:] if x.shape[1] == 2 else x[:1, :, :64] for x in (q, k, v, slope)]
    wanted = learnt(lambda *qkv: in_double(torch.zeros(1, 1), *qkv), *(t.double() for t in part))
    mine = (found[0][:1, :, 5:], found[1][:1, :, 5:], found[2][:1, :, :64], found[3][:1, :, :64])
    assert max(error(a, b) for a, b in zip(mine, wanted, strict=True)) <= LIMIT


@pytest.mark.parametrize("which", range(3))
def test_what_is_no_number_is_not_hidden(which: int) -> None:
    x = tensors(2, 1, 70, 16)
    x[which][0, 0, 3, 5] = torch.nan
    x[which][1, 0, 0, 0] = torch.inf
    mask = torch.full((70, 70), -torch.inf).triu(1)
    blocks = kernels_cpu.table([(row, 0, 70, ((0, 70),)) for row in range(2)], [mask, mask])
    wanted = learnt(lambda *qkv: in_double(mask, *qkv), *(t.double() for t in x))
    found = learnt(lambda *qkv: kernels_cpu.attention(*qkv, blocks), *x)
    assert wanted[0].isnan().any()
    for a, b in zip(found, wanted, strict=True):
        assert (b.isnan() <= a.isnan()).all()


def test_without_masks_and_from_an_expanded_gradient() -> None:
    q, k, v, _ = tensors(4, 2, 101, 48)
    blocks = kernels_cpu.table([(row, 0, 101, ((0, 101),)) for row in range(2)])
    slope = torch.ones(()).expand(q.shape)
    wanted = learnt(
        lambda *qkv: in_double(torch.zeros(1, 1), *qkv), *(t.double() for t in (q, k, v, slope))
    )
    found = learnt(lambda *qkv: kernels_cpu.attention(*qkv, blocks), q, k, v, slope)
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) <= LIMIT


def test_a_head_of_other_widths_is_left_to_pytorch() -> None:
    q, k, v, _ = tensors(2, 1, 300, 24)
    assert not kernels_cpu.usable(q, k, v)
    assert not kernels_cpu.usable(*(x.bfloat16() for x in tensors(2, 1, 300, 32)[:3]))
