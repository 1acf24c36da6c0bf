"""Products by our own kernel: against float64 at every kind of edge, and bit by bit whatever is beside a number."""

import shutil

import pytest
import torch
from ops_check import error
from torch import Tensor

from molmo_ds.ops import cpu_library
from molmo_ds.ops.linear import many

DEEP = 384  # as in many.cpp
PANEL = 32  # with AVX-512, of which narrower vectors have a half or a quarter

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def matrix(rows: int, steps: int, order: str, seed: int) -> Tensor:
    """Random [rows, steps], by rows, by steps, in every third column, in a turned part or in rows far apart."""
    draw = torch.Generator().manual_seed(seed)
    if order == "rows":
        return torch.randn(rows, steps, generator=draw)
    if order == "steps":
        return torch.randn(steps, rows, generator=draw).T
    if order == "apart":
        return torch.randn(rows, 3 * steps, generator=draw)[:, 1::3]
    if order == "far":  # by a multiple of 1,024, which share places of the first cache
        return torch.randn(rows, -(-steps // 1024) * 1024, generator=draw)[:, :steps]
    return torch.randn(steps + 5, rows + 7, generator=draw)[2:-3, 3:-4].T


SIZES = [
    (1, 1, 1),
    (12, DEEP, PANEL),
    (13, DEEP + 1, PANEL + 1),
    (97, 2 * DEEP - 1, 2 * PANEL - 1),
    (11, 7, 15),
    (200, 50, 700),
    (3, 1500, 9),
    (300, 900, 33),
]


ORDERS = ("rows", "steps", "apart", "part", "far")


@pytest.mark.parametrize("a_order", ORDERS)
@pytest.mark.parametrize("b_order", ORDERS)
def test_against_float64(a_order: str, b_order: str) -> None:
    assert cpu_library.load() is not None
    for rows, steps, columns in SIZES:
        a = matrix(rows, steps, a_order, 0)
        b = matrix(columns, steps, b_order, 1)
        bias = torch.randn(columns, generator=torch.Generator().manual_seed(2))
        exact = a.double() @ b.double().T
        assert error(many.product(a, b), exact) < 1e-6, (rows, steps, columns)
        assert error(many.product(a, b, bias), exact + bias.double()) < 1e-6, (rows, steps, columns)
        total = matrix(rows, columns, "rows", 3)
        before = total.double()
        many.add_product(total, a, b)
        assert error(total, before + exact) < 1e-6, (rows, steps, columns)


@pytest.mark.parametrize("order", ["rows", "steps", "far"])
def test_a_number_does_not_depend_on_the_others(order: str) -> None:
    a = matrix(230, 800, order, 0)
    b = matrix(600, 800, order, 1)
    whole = many.product(a, b)
    for first, last in [(0, 1), (5, 6), (17, 230), (100, 113)]:
        assert torch.equal(many.product(a[first:last], b), whole[first:last])
        assert torch.equal(many.product(a, b[first:last]), whole[:, first:last])


@pytest.mark.parametrize(("rows", "columns"), [(700, 90), (90, 700), (5, 3)])
def test_threads_change_no_bit(rows: int, columns: int) -> None:
    a = matrix(rows, 500, "steps", 0)
    b = matrix(columns, 500, "rows", 1)
    bias = torch.randn(columns)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append(many.product(a, b, bias))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("order", ["rows", "steps", "apart", "part"])
def test_sums_of_rows_beside_a_product(order: str) -> None:
    """In the same order of addition for any threads and rows; of a that lies by rows, PyTorch's."""
    before = torch.get_num_threads()
    for rows, steps, columns in SIZES:
        a = matrix(rows, steps, order, 0)
        b = matrix(columns, steps, "steps", 1)
        wanted = many.product(a, b)
        exact = a.double().sum(1)
        sizes = a.double().abs().sum(1)
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                out, sums = many.product_and_sums(a, b)
                assert torch.equal(out, wanted)
                assert ((sums - exact).abs() <= 1e-6 * sizes).all(), (rows, steps, columns)
                if order == "steps" and rows > 1:
                    last = many.product_and_sums(a[rows // 2 :], b)[1]
                    assert torch.equal(last, sums[rows // 2 :])
        finally:
            torch.set_num_threads(before)


def test_what_is_no_number_stays_in_its_row() -> None:
    a = torch.ones(40, 50)
    a[3, 7] = float("nan")
    a[9, 0] = float("inf")
    out = many.product(a, torch.ones(33, 50))
    assert out[3].isnan().all() and out[9].isinf().all()
    rest = torch.ones(40, dtype=torch.bool)
    rest[[3, 9]] = False
    assert (out[rest] == 50).all()


def test_nothing_is_written_beside_the_result() -> None:
    around = torch.full((14, 20), 7.0)
    total = around[1:-1].view(-1)[: 12 * 19].view(12, 19)
    many.add_product(total, torch.ones(12, 400), torch.ones(19, 400))
    assert (total == 407).all()
    assert (around.view(-1)[:20] == 7).all() and (around.view(-1)[20 + 12 * 19 :] == 7).all()


def test_empty_products() -> None:
    assert many.product(torch.ones(0, 5), torch.ones(3, 5)).shape == (0, 3)
    bias = torch.arange(3.0)
    assert torch.equal(many.product(torch.ones(2, 0), torch.ones(3, 0), bias), bias.expand(2, 3))


@pytest.mark.parametrize("steps", [256, 704, 2308])
def test_rounds_no_more_than_mkl(steps: int) -> None:
    """MKL's errors on an AMD EPYC with AVX-512 are 2.1e-7, 2.5e-7 and 2.6e-7 here; one long sum's 2.9e-7 and more."""
    a = matrix(300, steps, "rows", 0)
    b = matrix(256, steps, "rows", 1)
    assert error(many.product(a, b), a.double() @ b.double().T) < 2.1e-7
