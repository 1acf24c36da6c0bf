"""The CPU's own attention over panels of keys, beside float64 with a whole mask: trees, padding, groups, threads."""

import shutil

import pytest
import torch
from ops_check import error
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.ops import cpu_library, dispatch
from molmo_ds.ops.tree_attention import cpu, kernels_cpu, panels, reference, tree_attention
from molmo_ds.ops.tree_attention.panels import QUERIES, Panels

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

LIMIT = 2e-6


def ids(kind: str, tokens: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Documents, branches and images [2, T]; the second sequence is another than the first."""
    images = None
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
    if kind == "video":
        images = (torch.arange(tokens) % 90 > 20).int().repeat(2, 1)
        images[1, 100:] = 0
    return documents, branches, images


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


@pytest.mark.parametrize("kind", ["causal", "tree", "documents", "video"])
@pytest.mark.parametrize(
    ("heads", "groups", "tokens", "width"),
    [
        (4, 2, 400, 16),
        (8, 2, 513, 32),
        (2, 2, 300, 64),
        (6, 1, 257, 80),
        (3, 3, 391, 128),
        (4, 2, 150, 24),  # no whole vectors
        (2, 1, 97, 5),
    ],
)
def test_panels(kind: str, heads: int, groups: int, tokens: int, width: int) -> None:
    assert cpu_library.load() is not None
    of_tokens = ids(kind, tokens)
    mask = reference.attention_plan(*of_tokens[:2], torch.float32, of_tokens[2]).mask
    seen = panels.of_ids(*of_tokens)
    x = tensors(heads, groups, tokens, width)
    assert kernels_cpu.usable(*x[:3])
    wanted = learnt(lambda *qkv: in_double(mask, *qkv), *(t.double() for t in x))
    found = learnt(lambda *qkv: kernels_cpu.attention(*qkv, seen), *x)
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) <= LIMIT
    with torch.no_grad():
        assert torch.equal(kernels_cpu.attention(*x[:3], seen), found[0])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    again = learnt(lambda *qkv: kernels_cpu.attention(*qkv, seen), *x)
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_a_query_that_sees_nothing() -> None:
    # the first sequence's queries from 5 on see the first two panels, nobody else anything
    q, k, v, slope = tensors(2, 1, 70, 16)
    words = torch.full((2 * QUERIES,), -1, dtype=torch.int32)
    words[:5] = 0
    words[QUERIES : QUERIES + 5] = 0
    seen = Panels(
        torch.tensor([[0, 2, 4], [4, 4, 4]]),
        torch.tensor([[0, 0], [1, QUERIES], [0, -1], [1, -1]]),
        words,
    )
    found = learnt(lambda *qkv: kernels_cpu.attention(*qkv, seen), q, k, v, slope)
    for x in found:
        assert x.isfinite().all() and (x[1] == 0).all()
    assert (found[0][0, :, :5] == 0).all() and (found[1][0, :, :5] == 0).all()
    assert (found[2][0, :, 64:] == 0).all() and (found[3][0, :, 64:] == 0).all()
    part = [x[:1, :, 5:] if x.shape[1] == 2 else x[:1, :, :64] for x in (q, k, v, slope)]
    wanted = learnt(lambda *qkv: in_double(torch.zeros(1, 1), *qkv), *(t.double() for t in part))
    mine = (found[0][:1, :, 5:], found[1][:1, :, 5:], found[2][:1, :, :64], found[3][:1, :, :64])
    assert max(error(a, b) for a, b in zip(mine, wanted, strict=True)) <= LIMIT


def query_by_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention in which nothing touches what a query does not see."""
    rows = []
    for last in range(q.shape[2]):
        seen = slice(last + 1)
        rows.append(
            in_double(torch.zeros(1, 1), q[:, :, last : last + 1], k[:, :, seen], v[:, :, seen])
        )
    return torch.cat(rows, 2)


@pytest.mark.parametrize("which", range(3))
def test_what_is_no_number_is_not_hidden(which: int) -> None:
    x = tensors(2, 1, 70, 16)
    x[which][0, 0, 3, 5] = torch.nan
    x[which][1, 0, 0, 0] = torch.inf
    seen = panels.of_ids(*ids("causal", 70))
    wanted = learnt(query_by_query, *(t.double() for t in x))
    found = learnt(lambda *qkv: kernels_cpu.attention(*qkv, seen), *x)
    assert wanted[0].isnan().any()
    for a, b in zip(found, wanted, strict=True):
        assert (a.isfinite() <= b.isfinite()).all()


def test_all_see_all_and_from_an_expanded_gradient() -> None:
    q, k, v, _ = tensors(4, 2, 101, 48)
    slope = torch.ones(()).expand(q.shape)
    wanted = learnt(
        lambda *qkv: in_double(torch.zeros(1, 1), *qkv), *(t.double() for t in (q, k, v, slope))
    )
    one = torch.ones(2, 101, dtype=torch.int32)
    seen = panels.of_ids(one, torch.zeros_like(one), one)  # all of one picture
    found = learnt(lambda *qkv: kernels_cpu.attention(*qkv, seen), q, k, v, slope)
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) <= LIMIT


def test_other_types_are_left_to_pytorch() -> None:
    assert not kernels_cpu.usable(*(x.bfloat16() for x in tensors(2, 1, 300, 32)[:3]))


@pytest.mark.parametrize("tokens", [QUERIES, QUERIES + 1, 95, 577])
@pytest.mark.parametrize("width", [10, 64, 72])
def test_patches_of_a_crop_all_see_all(tokens: int, width: int) -> None:
    x = tensors(3, 3, tokens, width)
    with dispatch.use("cpu"):
        assert cpu.has_panels(*x[:3], None, 0.0)
        found = learnt(lambda *qkv: tree_attention(*qkv, None), *x)
    wanted = learnt(lambda *qkv: in_double(torch.zeros(1, 1), *qkv), *(t.double() for t in x))
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) <= LIMIT


def test_other_lengths_and_dropout_without_a_plan_are_left_to_pytorch() -> None:
    q, k, v, _ = tensors(2, 2, 100, 16)
    assert not cpu.has_panels(q, k[:, :, :80], v[:, :, :80], None, 0.0)
    assert not cpu.has_panels(q, k, v, None, 0.1)
    assert not cpu.has_panels(*(x[:, :, : QUERIES - 1] for x in (q, k, v)), None, 0.0)
    few = k[:, :, :80], v[:, :, :80]
    with dispatch.use("cpu"):
        out = tree_attention(q, *few, None)
    wanted = in_double(torch.zeros(1, 1), *(x.double() for x in (q, *few)))
    assert error(out, wanted) <= LIMIT
