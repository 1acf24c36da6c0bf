"""Comparisons of our network with the reference's numbers that several files of goldens make.

Shapes: B rows, T tokens, D width, E words.
"""

from typing import Any

import pytest
import torch
from golden_models import column_step
from torch import Tensor, nn

from molmo_ds.batch import Carry
from molmo_ds.model.molmo import Molmo

ATOL = 1e-4  # measured on the copy here: 1.2e-5 for hidden states and logits
# a key bias has no gradient in exact arithmetic; 1e-7 of noise is left
NOISE = 1e-6


def close(ours: Tensor, golden: Tensor, atol: float = ATOL) -> None:
    """AssertionError where an element differs by more than `atol`."""
    torch.testing.assert_close(ours, golden, atol=atol, rtol=0)


def close_residual(ours: Tensor, golden: Tensor) -> None:
    """For what is not normalised yet and reaches 50: the reference's own rounding there is 5e-5, by float64."""
    close(ours, golden, max(ATOL, 3e-6 * float(golden.abs().max())))


class Taps:
    """What flows out of named rows during a forward."""

    def __init__(self, model: Molmo, *names: str):
        self.out: dict[str, Carry] = {}
        for name in names:
            model.get_submodule(name).register_forward_hook(
                lambda _, __, out, name=name: self.out.update({name: out})
            )


def check_logits(logits: Tensor, golden: dict[str, Tensor], seen: Tensor) -> None:
    """Logits [B, T, E] of the tokens `seen`, bool [B, T]: every few columns, their sum and the largest."""
    columns = golden["out.logits_cols"]
    step = column_step(logits.shape[-1], columns.shape[-1])
    close(logits[..., ::step][seen], columns[seen])
    close(logits.logsumexp(-1)[seen], golden["out.logits_logsumexp"][seen])
    assert torch.equal(logits.argmax(-1)[seen], golden["out.logits_argmax"][seen])


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of each parameter, zeros where the loss does not reach it."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }


def check_gradient(key: str, gradient: Tensor, golden: dict[str, Any] | None) -> None:
    """A gradient against norm, samples and (if it is there) sum of the reference's; None = there is none."""
    if golden is None:
        assert not gradient.any(), key
        return
    gradient = gradient.double()
    norm = golden["norm"]
    assert float(gradient.norm()) == pytest.approx(norm, rel=1e-4, abs=NOISE), key
    size = norm / gradient.numel() ** 0.5
    samples = gradient.flatten()[golden["idx"]].tolist()
    assert samples == pytest.approx(golden["val"], rel=1e-4, abs=1e-4 * size + NOISE), key
    if "sum" in golden:
        total = pytest.approx(golden["sum"], rel=1e-4, abs=1e-4 * norm + 10 * NOISE)
        assert float(gradient.sum()) == total, key
