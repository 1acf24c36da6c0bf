"""bf16 on the CPU is no less exact than torch's own, against float64; the loss's rows in one softmax."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from molmo_ds.ops import dispatch, linear
from molmo_ds.ops.tree_attention import attention_plan, tree_attention
from molmo_ds.ops.weighted_cross_entropy import chunks, cpu

T = 150
HALF = torch.bfloat16


def apart(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("given", [torch.float32, HALF])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_under_autocast(given: torch.dtype, with_bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 65, 96, generator=draw).to(given)
    weight = torch.randn(33, 96, generator=draw)
    bias = torch.randn(33, generator=draw) if with_bias else None
    of_out = torch.randn(2, 65, 33, generator=draw)

    def run(name: str, dtype: torch.dtype | None) -> list[Tensor]:
        leaves = [None if t is None else t.to(dtype or t.dtype) for t in (x, weight, bias)]
        leaves = [None if t is None else t.detach().requires_grad_() for t in leaves]
        with dispatch.use(name), torch.autocast("cpu", HALF, enabled=dtype is None):
            out = linear.linear(*leaves)
        out.backward(of_out.to(out.dtype))
        return [out.detach(), *(t.grad for t in leaves if t is not None)]

    exact = run("torch", torch.float64)
    for ours, torchs, right in zip(run("cpu", None), run("torch", None), exact, strict=True):
        assert ours.dtype == torchs.dtype and ours.shape == torchs.shape
        assert 1e-4 < apart(torchs, right) < 1e-2  # its products are in bf16
        assert apart(ours, right) < 1.05 * apart(torchs, right)


def test_no_cast_of_the_weight_is_kept() -> None:
    weight = torch.randn(32, 64, requires_grad=True)
    kept = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with dispatch.use("cpu"), torch.autocast("cpu", HALF), keep:
        linear.linear(torch.randn(8, 64), weight)
    assert {(t.dtype, t.numel()) for t in kept} == {(HALF, 8 * 64), (torch.float32, 32 * 64)}
    assert any(t.data_ptr() == weight.data_ptr() for t in kept)


def ids(kind: str) -> tuple[Tensor, Tensor]:
    documents = torch.ones(2, T, dtype=torch.int32)
    branches = torch.zeros(2, T, dtype=torch.int32)
    if kind == "documents":
        documents[:] = torch.arange(T) // 40 + 1
    elif kind == "tree":
        branches[:, 40:] = torch.arange(T - 40) // 20 + 1
    return documents, branches


@pytest.mark.parametrize("kind", ["no plan", "documents", "tree"])
def test_attention_of_bf16(kind: str) -> None:
    """Blocks take 'tree', one document after the other 'documents'."""
    draw = torch.Generator().manual_seed(0)
    q, of_out = torch.randn(2, 2, 4, T, 16, generator=draw)
    k, v = torch.randn(2, 2, 2, T, 16, generator=draw)

    def run(name: str | None, dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).detach().requires_grad_() for t in (q, k, v)]
        with dispatch.use(name):
            plan = None if kind == "no plan" else attention_plan(*ids(kind), dtype)
            out = tree_attention(*leaves, plan)
        out.backward(of_out.to(dtype))
        return [out.detach(), *(t.grad for t in leaves)]

    exact = run("torch", torch.float64)
    for ours, torchs, right in zip(run(None, HALF), run("torch", HALF), exact, strict=True):
        assert ours.dtype == HALF
        assert 1e-4 < apart(torchs, right) < 2e-2
        assert apart(ours, right) < 1.05 * apart(torchs, right)


Rows = Callable[[Tensor, Tensor, Tensor, float, bool], Tensor]


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("grad", [True, False])
def test_rows_of_the_loss(dtype: torch.dtype, grad: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = (20 * torch.randn(30, 70, generator=draw)).to(dtype)
    labels = torch.randint(0, 70, (30,), generator=draw)
    weights = torch.rand(30, generator=draw)
    # equal largest logits: a label that is the first of them, one that is not; one that is alone
    logits[0, [3, 9]] = logits[1, [3, 9]] = logits[2, 5] = 200.0
    labels[0], labels[1], labels[2] = 3, 9, 5

    def run(rows: Rows) -> tuple[Tensor, Tensor]:
        mine = logits.clone()
        return rows(mine, labels, weights, 1e-2, grad), mine

    sums, after = run(cpu.rows)
    exact = torch.softmax(logits.double(), -1)
    lse = logits.double().logsumexp(-1)
    index = torch.arange(30)
    right = (logits.float().argmax(-1) == labels).double()
    wanted = (lse - logits.double()[index, labels], 1e-2 * lse**2, right)
    assert apart(sums, torch.stack(wanted, -1) * weights.double()[:, None]) < 1e-6
    assert (right[:3] == torch.tensor([1.0, 0.0, 1.0])).all()
    slope = exact * (weights * (1 + 2e-2 * lse))[:, None]
    slope[index, labels] -= weights
    kept = logits.double() if not grad else slope
    assert apart(after, kept) < (1e-6 if dtype == torch.float32 else 4e-3)
    assert torch.allclose(sums, run(chunks.rows_torch)[0], rtol=1e-5)
    logits[4, 8] = float("nan")  # a step that is not finite must be seen
    assert run(cpu.rows)[0][4, 0].isnan()
