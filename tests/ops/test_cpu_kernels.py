"""The C++ kernels of the CPU beside float64 of the plain ops: odd sizes, none, threads, cuts, numbers that are none."""

import shutil
from collections.abc import Iterator

import pytest
import torch
from ops_check import bits, errors
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.ops import cpu_library, dispatch
from molmo_ds.ops.cached_attention import cached_attention, step_plan, write_cache
from molmo_ds.ops.linear import few, linear
from molmo_ds.ops.quick_gelu import quick_gelu
from molmo_ds.ops.rms_norm import rms_norm
from molmo_ds.ops.rope import rope_table, rotate
from molmo_ds.ops.swiglu import swiglu
from molmo_ds.ops.weighted_cross_entropy import weighted_cross_entropy

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

LIMIT = 1e-6
WIDTHS = (3, 5, 16, 17, 100, 1030)


@pytest.fixture(autouse=True)
def compiled() -> Iterator[None]:
    assert cpu_library.load() is not None
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def leaf(*size: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*size)).requires_grad_()


def rotated(x: Tensor) -> Tensor:
    """[B, T, H, d] as projections leave it, at positions that differ from row to row."""
    positions = torch.arange(x.shape[1]) * torch.arange(1, len(x) + 1)[:, None] * 7
    cos, sin = rope_table(positions, x.shape[-1], 1e4)
    return rotate(x.transpose(1, 2), cos.to(x.dtype), sin.to(x.dtype))


CASES = {
    "rms_norm": (lambda x, w: rms_norm(x, w, 1e-5), lambda n: [leaf(3, 70, n, scale=3), leaf(n)]),
    "swiglu": (swiglu, lambda n: [leaf(3, 70, n, scale=9), leaf(3, 70, n)]),
    "quick_gelu": (quick_gelu, lambda n: [leaf(3, 70, n, scale=9)]),
    "rope": (rotated, lambda n: [leaf(2, 9, 3, 2 * n)]),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients(name: str, width: int) -> None:
    op, arguments = CASES[name]
    args = arguments(width)
    assert max(errors(op, args, by="cpu")) <= LIMIT
    assert max(errors(op, args, by="cpu", stride_0=True)) <= LIMIT


@pytest.mark.parametrize("name", CASES)
def test_not_contiguous_and_none(name: str) -> None:
    op, arguments = CASES[name]
    args = [
        a.detach().mT.contiguous().mT.requires_grad_() if a.dim() > 2 else a for a in arguments(34)
    ]
    assert not args[0].is_contiguous()
    assert max(errors(op, args, by="cpu")) <= LIMIT
    nothing = [a.detach()[:0].requires_grad_() if a.dim() > 1 else a for a in arguments(34)]
    assert max(errors(op, nothing, by="cpu")) == 0


@pytest.mark.parametrize("name", CASES)
def test_neither_threads_nor_learning_change_a_bit(name: str) -> None:
    op, arguments = CASES[name]
    args = arguments(1030)
    torch.set_num_threads(1)
    alone = bits(op, args, "cpu")
    torch.set_num_threads(3)
    assert all(torch.equal(a, b) for a, b in zip(alone, bits(op, args, "cpu"), strict=True))
    with torch.no_grad():
        assert torch.equal(op(*args), alone[0])


@pytest.mark.parametrize("name", ["swiglu", "quick_gelu"])
def test_a_number_does_not_depend_on_where_a_tensor_is_cut(name: str) -> None:
    op, arguments = CASES[name]
    args = [a.detach().flatten()[:1000] for a in arguments(5)]
    whole = op(*args)
    for cut in (1, 7, 16, 500, 999):
        parts = [op(*(a[:cut] for a in args)), op(*(a[cut:] for a in args))]
        assert torch.equal(torch.cat(parts), whole)


def test_a_row_of_the_norm_does_not_depend_on_the_others() -> None:
    x, weight = torch.randn(130, 100), torch.randn(100)
    whole = rms_norm(x, weight, 1e-5)
    assert all(torch.equal(rms_norm(x[i : i + 1], weight, 1e-5)[0], whole[i]) for i in range(130))


def test_gates_far_from_zero() -> None:
    x = torch.tensor([-1e4, -100.0, -89.0, -88.0, 0.0, 88.0, 100.0, 1e4, 1e30], requires_grad=True)
    slopes = torch.tensor([0.0] * 4 + [0.5] + [1.0] * 4)
    for op in (quick_gelu, lambda gate: swiglu(gate, torch.ones_like(gate))):
        (slope,) = torch.autograd.grad(op(x).sum(), x)
        torch.testing.assert_close(op(x), x.detach().clamp(min=0), rtol=1e-6, atol=1e-30)
        torch.testing.assert_close(slope, slopes, rtol=1e-6, atol=1e-30)
    assert quick_gelu(torch.full((20,), torch.nan)).isnan().all()


@pytest.mark.parametrize("words", [1, 15, 16, 33, 1000])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_rows_of_the_loss(words: int, z_loss: float) -> None:
    labels = torch.randint(0, words, (50,))
    weights = torch.rand(50) * (torch.rand(50) > 0.3)
    args = [leaf(50, 24, scale=3), leaf(words, 24), labels, weights, z_loss]

    def loss(*given: object) -> Tensor:
        ce_sum, z_sum, _ = weighted_cross_entropy(*given)
        return ce_sum + z_sum

    assert max(errors(loss, args, by="cpu")) <= LIMIT


def rows_of(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(sums, gradient of the logits) of rows that weigh 1."""
    from molmo_ds.ops.weighted_cross_entropy import cpu

    slope = logits.clone()
    return cpu.rows(slope, labels, torch.ones(len(labels)), 1e-2, True), slope


def test_rows_with_equal_masked_and_no_numbers() -> None:
    infinite = float("inf")
    logits = torch.full((4, 20), 1.0)
    logits[1, 3:] = -infinite
    logits[2, 5] = torch.nan
    logits[3, 7] = 90.0
    sums, slope = rows_of(logits, torch.tensor([0, 2, 5, 7]))
    assert sums[:, 2].tolist()[:2] == [1.0, 0.0], "the first of equal logits is the likeliest"
    assert (slope[1, 3:] == 0).all() and slope[1].isfinite().all()
    assert sums[2, 0].isnan() and slope[2].isnan().all()
    torch.testing.assert_close(sums[0, 0], torch.tensor(20.0).log(), rtol=1e-6, atol=0)
    assert sums[3, 0].abs() <= 1e-6 and sums[3, 2] == 1.0
    one = rows_of(logits[1:2], torch.tensor([2]))
    assert torch.equal(one[0][0], sums[1]) and torch.equal(one[1][0], slope[1])


@pytest.mark.parametrize("rows", range(1, few.MOST + 2))
def test_a_few_rows_times_columns(rows: int) -> None:
    for inputs in (1, 31, 32, 40, 353):
        for outputs in (2, 7, 16, 33, 64, 100, 352):
            x = torch.randn(rows, inputs)
            weight = torch.randn(inputs, outputs).T
            bias = torch.randn(outputs)
            assert few.usable(x, weight) is (rows <= few.MOST)
            with torch.no_grad():
                out = linear(x[:, None], weight, bias)[:, 0]
                alone = [linear(x[i : i + 1], weight, bias)[0] for i in range(rows)]
                torch.set_num_threads(3)
                threaded = linear(x, weight, bias)
                torch.set_num_threads(1)
            wanted = F.linear(x.double(), weight.double(), bias.double())
            assert (out.double() - wanted).norm() <= 1e-6 * wanted.norm()
            if rows <= few.MOST:
                assert torch.equal(torch.stack(alone), out) and torch.equal(threaded, out)


def test_rows_that_the_kernel_leaves_alone() -> None:
    x, weight = torch.randn(4, 8), torch.randn(8, 6).T
    assert few.usable(x, weight)
    assert not few.usable(x, weight.contiguous()), "it lies by rows"
    assert not few.usable(x[:0], weight)
    assert not few.usable(x, torch.randn(9, 6).T), "another number of inputs"
    assert not few.usable(x.double(), weight.double())
    with pytest.raises(RuntimeError), torch.no_grad():
        linear(x, torch.randn(9, 6).T, None)
    learnt = linear(x, weight.detach().requires_grad_(), None)
    assert learnt.grad_fn is not None


@pytest.mark.parametrize(
    ("heads", "groups", "capacity", "width"),
    [
        (4, 2, 30, 8),
        (8, 2, 70, 64),
        (6, 6, 40, 24),
        (4, 1, 33, 17),
        (7, 1, 20, 128),
        (2, 2, 5, 200),
    ],
)
def test_a_step_over_the_cache(heads: int, groups: int, capacity: int, width: int) -> None:
    rows = 5
    q = torch.randn(rows, 1, heads, width).transpose(1, 2)
    k, v = torch.randn(2, rows, groups, 1, width)
    cache = torch.randn(2, rows + 2, groups, capacity, width)
    places = torch.tensor([0, capacity - 1, 3, 1, 2])
    for row, place in enumerate(places):  # what nothing sees need not be a number
        cache[:, row, :, place:] = torch.nan
    keys, values = cache.clone()
    out = cached_attention(q, k, v, keys, values, step_plan(places, capacity, torch.float32))
    for row, place in enumerate(places.tolist()):
        assert torch.equal(keys[row, :, place], k[row, :, 0])
        assert torch.equal(values[row, :, place], v[row, :, 0])
        seen = [
            x[row, :, : place + 1].double().repeat_interleave(heads // groups, 0)
            for x in (keys, values)
        ]
        scores = (seen[0] @ q[row, :, 0, :, None].double())[..., 0] / width**0.5
        wanted = (scores.softmax(-1)[:, None] @ seen[1])[:, 0]
        assert (out[row, :, 0].double() - wanted).norm() <= LIMIT * wanted.norm()
    apart = cache[0].isnan() & keys.isnan()
    assert torch.equal(apart | (keys == cache[0]) | ~keys.isnan(), torch.ones_like(apart))
    with pytest.raises(IndexError):
        cached_attention(q, k, v, keys, values, step_plan(places, capacity + 1, torch.float32))


def test_a_prefill_is_written_into_the_cache() -> None:
    new = torch.randn(2, 9, 3, 8).transpose(1, 2)  # [B, G, T, d]
    source = torch.tensor([0, 17, 4, 4, 9])
    slot = torch.tensor([1, 0, 3, 2, 2])
    place = torch.tensor([0, 6, 1, 2, 5])
    kept = torch.randn(4, 3, 7, 8)
    plain = kept.clone()
    write_cache(kept, new, source, slot, place)
    with dispatch.use("torch"):
        write_cache(plain, new, source, slot, place)
    assert torch.equal(kept, plain)
    for wrong in (
        (torch.tensor([18]), slot[:1], place[:1]),
        (source[:1], torch.tensor([4]), place[:1]),
        (source[:1], slot[:1], torch.tensor([-1])),
    ):
        with pytest.raises(IndexError):
            write_cache(kept, new, *wrong)
    write_cache(kept, new, source[:0], slot[:0], place[:0])
    assert torch.equal(kept, plain)


def test_results_are_float32_of_the_cpu_whatever_the_default_is() -> None:
    x, weight = torch.randn(3, 2, 5, 32), torch.randn(32)
    cos, sin = rope_table(torch.arange(5)[None], 32, 1e4)
    columns = torch.randn(32, 48).T
    wanted = [rms_norm(x, weight, 1e-6), rotate(x, cos, sin)]
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.no_grad():
            found = [rms_norm(x, weight, 1e-6), rotate(x, cos, sin)]
            few_rows = linear(x[0, 0], columns, None)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted))
    assert few_rows.dtype == torch.float32 and few_rows.device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_run_by_the_plain_ops(dtype: torch.dtype) -> None:
    for by in ("cpu", None):
        with dispatch.use(by):
            x, weight = torch.randn(4, 34, dtype=dtype), torch.randn(34, dtype=dtype)
            with dispatch.use("torch"):
                plain = [rms_norm(x, weight, 1e-6), swiglu(x, x), quick_gelu(x)]
            ours = [rms_norm(x, weight, 1e-6), swiglu(x, x), quick_gelu(x)]
            assert all(torch.equal(a, b) for a, b in zip(ours, plain))
