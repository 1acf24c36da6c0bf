"""The Triton kernels, on a GPU or in Triton's interpreter on the CPU; test_triton.py runs this file in a process."""

from collections.abc import Callable, Iterator

import pytest
import torch
from ops_check import bits, error, errors
from torch import Tensor

from molmo_ds.model.molmo import Molmo
from molmo_ds.ops import dispatch
from molmo_ds.ops.crops import normalise_patches
from molmo_ds.ops.pool_patches import gather_patches, pool_patches
from molmo_ds.ops.splice import splice
from molmo_ds.ops.weighted_cross_entropy import CHUNK_ELEMENTS, reference, weighted_cross_entropy
from molmo_ds.testing import synthetic
from molmo_ds.testing.scripts import load

bench_ops = load("tools/bench", "bench_ops", "ops_cases")

LIMIT = 1e-5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # with these two, memory that torch.empty hands out is full of NaN
    torch.manual_seed(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    # small chunks, so that a few rows already make several
    monkeypatch.setitem(CHUNK_ELEMENTS, DEVICE, 16 * 97)
    with torch.device(DEVICE):
        assert torch.empty(3).isnan().all()
        assert torch.ones(2).new_empty(3).isnan().all()
        yield


def leaf(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size).to(dtype).requires_grad_()


def words(base: int, extra: int, repeated: int = 0) -> Tensor:
    ids = torch.randint(0, base + extra, (2, 33))
    ids[:, 3 : 3 + repeated] = base + 1  # the same extra word again and again, as image patches are
    ids[:, 20:24] = 5
    return ids


def places(count: int, tokens: int) -> Tensor:
    positions = torch.randperm(tokens)[:count]
    positions[::4] = -1
    return positions


def windows(size: int, patches: int, shared: bool = False) -> Tensor:
    out = torch.randperm(patches)[: patches // size * size].view(-1, size).clone()
    out[torch.rand(out.shape) < 0.3] = -1
    out[1] = -1  # a window without patches
    if shared:
        out[2, 0] = out[3, 0] = out[3, 1] = 5
    return out


def test_normalise_patches() -> None:
    images = torch.randint(0, 256, (2, 28, 42, 3), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    with dispatch.use("triton"):
        got = normalise_patches(images, mean, std, 14)
    assert torch.equal(got, normalise_patches(images, mean, std, 14))


@pytest.mark.parametrize("width", [1, 72, 1030])
@pytest.mark.parametrize("stride_0", [False, True])
def test_splice(width: int, stride_0: bool) -> None:
    args = [words(50, 9, 12), leaf(50, width), leaf(9, width), leaf(11, width), places(11, 66)]
    assert max(errors(splice, args, "triton", stride_0=stride_0)) <= LIMIT


def test_splice_without_features_and_frozen_base() -> None:
    base = torch.randn(50, 8)
    args = [words(50, 9), base, leaf(9, 8), leaf(3, 8), torch.full((3,), -1)]
    assert max(errors(splice, args, "triton")) <= LIMIT
    with dispatch.use("triton"):
        out = splice(
            words(50, 9), base.bfloat16(), leaf(9, 8, dtype=torch.bfloat16), leaf(3, 8), args[4]
        )
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize(("size", "masked"), [(4, False), (4, True), (9, False), (9, True)])
@pytest.mark.parametrize("shared", [False, True])
def test_gather_patches(size: int, masked: bool, shared: bool) -> None:
    # 2 crops of 30 patches after 1 class token, width 20 (not a power of two), odd sizes throughout
    where = windows(size, 60, shared)
    args = [[leaf(2, 31, 20), leaf(2, 31, 20)], torch.rand(2, 30, 2), leaf(2, 40), where, masked]
    assert max(errors(gather_patches, args, "triton")) <= LIMIT


@pytest.mark.parametrize("kinds", [0, 1])
def test_gather_patches_of_one_layer_without_class_token(kinds: int) -> None:
    pad_embed = leaf(kinds, 7) if kinds else torch.zeros(0, 7)
    args = [[leaf(3, 9, 7)], torch.rand(3, 9, kinds), pad_embed, windows(4, 27), False]
    assert max(errors(gather_patches, args, "triton", stride_0=True)) <= LIMIT


@pytest.mark.parametrize(("size", "masked"), [(4, False), (4, True), (9, False), (9, True)])
@pytest.mark.parametrize(("heads", "width"), [(4, 64), (3, 18)])
def test_pool_patches(size: int, masked: bool, heads: int, width: int) -> None:
    where = windows(size, 60)
    args = [
        leaf(len(where), heads, width),
        leaf(len(where), size, heads, width),
        leaf(len(where), size, heads, width),
    ]
    assert max(errors(pool_patches, [*args, where, masked], "triton")) <= LIMIT
    assert max(errors(pool_patches, [*args, where, masked], "triton", stride_0=True)) <= LIMIT


def loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, z_loss: float
) -> tuple[Tensor, ...]:
    ce, z, accuracy = weighted_cross_entropy(hidden, weight, labels, weights, z_loss)
    return ce + z, z.detach(), accuracy.detach()


def loss_in_float64(
    hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, z_loss: float
) -> tuple[Tensor, ...]:
    ce, z, accuracy = reference.weighted_cross_entropy(hidden, weight, labels, weights, z_loss)
    return ce + z, z.detach(), accuracy.detach()


# not divisible by 16; divisible; more than one block
@pytest.mark.parametrize("words", [97, 96, 4100])
def test_weighted_cross_entropy(words: int) -> None:
    weights = torch.rand(45) * (torch.rand(45) > 0.4)
    # an image token: never looked up
    labels = torch.where(weights > 0, torch.randint(0, words, (45,)), words + 3)
    args = [leaf(45, 12), leaf(words, 12), labels, weights, 1e-2]
    assert max(errors(loss, args, "triton", loss_in_float64)) <= LIMIT


def test_likeliest_word_of_a_tie_is_the_first() -> None:
    hidden, weight = torch.ones(3, 4), torch.ones(4100, 4)  # more than one block
    with dispatch.use("triton"):
        right = loss(hidden, weight, torch.tensor([0, 7, 4096]), torch.arange(1.0, 4.0), 0.0)[2]
    assert right == 1


def test_loss_of_no_rows() -> None:
    args = [leaf(5, 12), leaf(97, 12), torch.randint(0, 97, (5,)), torch.zeros(5), 1e-2]
    assert max(errors(loss, args, "triton", loss_in_float64)) == 0


def cases() -> list[tuple]:
    where = windows(4, 60, shared=True)
    return [
        (splice, [words(50, 9, 12), leaf(50, 24), leaf(9, 24), leaf(11, 24), places(11, 66)]),
        (
            gather_patches,
            [[leaf(2, 31, 8), leaf(2, 31, 8)], torch.rand(2, 30, 2), leaf(2, 16), where, True],
        ),
        (pool_patches, [leaf(15, 2, 8), leaf(15, 4, 2, 8), leaf(15, 4, 2, 8), where, True]),
        (
            lambda *args: loss(*args)[0],
            [leaf(20, 8), leaf(97, 8), torch.randint(0, 97, (20,)), torch.rand(20), 1e-2],
        ),
    ]


def test_the_same_bits_twice() -> None:
    for op, args in cases():
        assert all(
            torch.equal(a, b) for a, b in zip(bits(op, args, "triton"), bits(op, args, "triton"))
        )


def test_compiled_without_graph_breaks() -> None:
    for op, args in cases():
        with dispatch.use("triton"):
            compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
            assert all(
                torch.equal(a, b)
                for a, b in zip(bits(op, args, "triton"), bits(compiled, args, "triton"))
            )


def test_opcheck() -> None:
    where, ops = windows(4, 60), torch.ops.molmo_ds
    torch.library.opcheck(
        ops.normalise_patches, (torch.zeros(1, 4, 4, 3, dtype=torch.uint8), [0.0] * 3, [1.0] * 3, 2)
    )
    torch.library.opcheck(
        ops.splice, (words(50, 9), leaf(50, 6), leaf(9, 6), leaf(11, 6), places(11, 66))
    )
    torch.library.opcheck(
        ops.gather_patches,
        ([leaf(2, 31, 8)], torch.rand(2, 30, 1), leaf(1, 8), where[:5].clone(), True),
    )
    torch.library.opcheck(
        ops.pool_patches,
        (leaf(15, 2, 8), leaf(15, 4, 2, 8), leaf(15, 4, 2, 8), where, False, "triton"),
    )
    rows = (torch.randint(0, 33, (9,)), torch.rand(9), 0.0, [True, True], torch.float32)
    # random gradients of ce and z would differ from each other, which the op forbids: its autograd is tested above
    for by in ("torch", "triton"):
        torch.library.opcheck(
            ops.weighted_cross_entropy,
            (torch.randn(9, 4), torch.randn(33, 4), *rows, by),
        )


def test_the_benchmark_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    # every path of tools/bench/bench_ops.py at tiny shapes, with a clock that says 2 ms and 1.5 times that
    run: list[object] = []

    def clock(function: Callable[[], object], device: str) -> tuple[float, float]:
        run.append(function())
        return 2.0, 0.5

    monkeypatch.setattr(bench_ops, "milliseconds", clock)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    table = bench_ops.main(["--small"])
    names, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]
    found = [dict(zip(names, row, strict=True)) for row in rows]
    assert names[:7] == ["op", "shape", "pass", "eager", "compile", "library", "own"]
    assert len(found) == 23 and len(run) == 3 * 23 + sum(row["library"] != "-" for row in found)
    for row in found:
        assert row["eager"] == row["compile"] == row["own"] == "2.000" and row["spread"] == "50%", (
            row
        )
        assert row["library"] in (
            "-",
            "2.000 (torch)",
            "2.000 (torch SDPA)",
            "2.000 (torch flash, causal)",
        ), row
        assert float(row["floor/own"]) == round(float(row["floor"]) / 2, 2)
        single, half = row["rel error"].split(" / ")
        assert float(single) <= LIMIT and (
            half == "-" if row["by"] == "triton" else float(half) <= 1e-2
        ), row
    own = {row["op"]: row["by"] for row in found}
    assert [own[op] for op in ("splice", "tree_attention", "swiglu")] == ["triton", "cuda", "torch"]


def test_a_whole_network(monkeypatch: pytest.MonkeyPatch) -> None:
    # loss and every gradient with the kernels against plain PyTorch; attention apart, FlexAttention needs a GPU
    monkeypatch.setitem(
        dispatch._table, "attention_plan", {"torch": dispatch._table["attention_plan"]["torch"]}
    )
    run = []

    def counted(op: str, *args: object) -> object:
        if "triton" in dispatch._table[op]:
            run.append(op)
        return call(op, *args)

    call = dispatch.call
    monkeypatch.setattr(dispatch, "call", counted)
    found = {}
    for by in ("torch", "triton"):
        model = Molmo(synthetic.MODEL)
        model.reset_parameters(0)
        with torch.device("cpu"):
            batch = synthetic.sequence(0, 0).to(DEVICE)
        with dispatch.use(by):
            ce, z, accuracy = model.to(DEVICE)(batch)
            (ce + z).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found[by] = {"ce": ce, "z": z, "accuracy": accuracy, **gradients}
    kernels = {
        "normalise_patches",
        "gather_patches",
        "pool_patches",
        "splice",
        "weighted_cross_entropy",
    }
    assert kernels <= set(run)
    assert found["torch"].keys() == found["triton"].keys()
    assert len(found["torch"]) > 40
    for name, value in found["torch"].items():
        assert error(found["triton"][name], value) <= LIMIT, name
