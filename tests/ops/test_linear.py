"""The linear layer's fast product against float64: output and every gradient, odd sizes and strides."""

import pytest
import torch
from torch import Tensor

from molmo_ds.ops import dispatch, linear

SIZES = [(300, 96, 80), (1, 33, 7), (129, 65, 257), (64, 2048, 16)]  # rows, inputs, outputs


def error(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_output_and_gradients(rows: int, inputs: int, outputs: int, with_bias: bool) -> None:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(inputs, 2, rows, generator=source).permute(1, 2, 0)  # not contiguous
    weight = torch.randn(outputs, inputs, generator=source)
    bias = torch.randn(outputs, generator=source)
    of_out = torch.randn(outputs, 2, rows, generator=source).permute(1, 2, 0)

    def run(name: str, dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).detach().requires_grad_() for t in (x, weight, bias)]
        with dispatch.use(name):
            out = linear.linear(leaves[0], leaves[1], leaves[2] if with_bias else None)
        out.backward(of_out.to(dtype))
        return [out.detach(), *(leaf.grad for leaf in leaves[: 2 + with_bias])]

    for ours, exact in zip(run("cpu", torch.float32), run("torch", torch.float64)):
        assert ours.shape == exact.shape
        assert error(ours, exact) < 2e-6


def test_what_needs_no_gradient_gets_none() -> None:
    x = torch.randn(8, 16)
    weight = torch.randn(4, 16, requires_grad=True)
    with dispatch.use("cpu"):
        linear.linear(x, weight).sum().backward()
    assert x.grad is None and weight.grad is not None


def test_half_precision_and_autocast_stay_with_torch() -> None:
    x = torch.randn(128, 256)
    weight = torch.randn(256, 256)
    assert linear.linear(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert linear.linear(x, weight).dtype == torch.bfloat16


def test_product_is_a_times_b_transposed() -> None:
    a = torch.randn(300, 96)
    b = torch.randn(128, 96)
    assert error(linear.product(a, b), a.double() @ b.double().T) < 2e-6
    assert error(linear.product(a.T.contiguous().T, b), a.double() @ b.double().T) < 2e-6
