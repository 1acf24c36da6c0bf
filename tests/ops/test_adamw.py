"""AdamW's update: the plain one is torch's to the bit, the kernel rounds as little, wherever a tensor is cut."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from molmo_ds.ops import cpu_library
from molmo_ds.ops.adamw import adamw, cpu, reference

SETTINGS = (0.01, (0.9, 0.95), 1e-6, 0.1)  # lr, betas, eps, decay
NUMBERS = 20_003
compiled = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def slopes() -> list[Tensor]:
    """Three, of every size from 1e-7 to 10, some of them 0."""
    draw = torch.Generator().manual_seed(1)
    out = []
    for _ in range(3):
        sizes = 10 ** torch.empty(NUMBERS).uniform_(-7, 1, generator=draw)
        slope = torch.randn(NUMBERS, generator=draw) * sizes
        slope[::7] = 0
        out.append(slope)
    return out


def first() -> Tensor:
    return torch.randn(NUMBERS, generator=torch.Generator().manual_seed(0)) / 50


def run(
    update: Callable, dtype: torch.dtype = torch.float32, cuts: tuple = (), divisor: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and moments after three steps, each piece between two cuts by itself."""
    weight = first().to(dtype)
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    ends = [0, *cuts, NUMBERS]
    for step, slope in enumerate(slopes(), 1):
        for start, end in zip(ends, ends[1:]):
            tensors = (weight, slope.to(dtype), mean, square)
            update(*(x[start:end] for x in tensors), step, *SETTINGS, divisor)
    return weight, mean, square


def test_the_plain_update_is_that_of_torch() -> None:
    weight = torch.nn.Parameter(first())
    lr, betas, eps, decay = SETTINGS
    stepper = torch.optim.AdamW([weight], lr, betas, eps, decay)
    for slope in slopes():
        weight.grad = slope
        stepper.step()
    state = stepper.state[weight]
    wanted = (weight.detach(), state["exp_avg"], state["exp_avg_sq"])
    for ours, theirs in zip(run(reference.adamw), wanted):
        assert torch.equal(ours, theirs)


@compiled
@pytest.mark.parametrize("divisor", [1.0, 3.7])
def test_the_kernel_rounds_as_little_as_torch(divisor: float) -> None:
    exact = run(reference.adamw, torch.float64, divisor=divisor)
    plain = run(reference.adamw, divisor=divisor)
    found = run(cpu.adamw, divisor=divisor)
    for ours, theirs, wanted in zip(found, plain, exact):
        error = (ours - wanted).norm()
        assert 0 < error <= 1.1 * (theirs - wanted).norm()


@compiled
def test_neither_cuts_nor_threads_change_a_bit() -> None:
    assert cpu_library.load() is not None
    whole = run(cpu.adamw)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        pieces = run(cpu.adamw, cuts=(7, 4_099, 4_100, 19_999))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(whole, pieces):
        assert torch.equal(one, other)


def test_what_the_kernel_cannot_read_is_updated_all_the_same() -> None:
    """A turned weight, a gradient that is a column, doubles."""
    wanted = run(reference.adamw, torch.float64)[0]
    for dtype, every in ((torch.float32, 2), (torch.float64, 1)):
        weight = torch.zeros(NUMBERS, every, dtype=dtype)[:, 0].copy_(first())
        mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
        assert weight.is_contiguous() == (every == 1)
        for step, slope in enumerate(slopes(), 1):
            tensors = (weight, slope.to(dtype), mean, square)
            assert not cpu.usable(*tensors)
            adamw(*tensors, step, *SETTINGS, 1.0)
        torch.testing.assert_close(weight.double(), wanted, rtol=0, atol=1e-7)


@compiled
def test_the_kernel_reads_what_has_one_shape() -> None:
    whole = [torch.zeros(6) for _ in range(4)]
    assert cpu.usable(*whole)
    for place in range(1, 4):
        other = whole.copy()
        other[place] = torch.zeros(5)
        assert not cpu.usable(*other), place


def test_nothing_is_nothing() -> None:
    nothing = [torch.empty(0) for _ in range(4)]
    adamw(*nothing, 1, *SETTINGS, 1.0)
