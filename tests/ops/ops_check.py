"""How the ops are compared with float64 of the plain reference: every output and gradient, by relative error."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from molmo_ds.ops import dispatch


def error(got: Tensor, wanted: Tensor) -> float:
    """|got - wanted| / |wanted| (2-norms); 0 / 0 is 0; NaN anywhere gives NaN."""
    norm = wanted.double().norm().item()
    off = (got.double() - wanted.double()).norm().item()
    return off / norm if norm else off


def errors(
    op: Callable[..., Any],
    args: list[Any],
    by: str = "torch",
    reference: Callable[..., Any] | None = None,
    stride_0: bool = False,
    seed: int = 0,
) -> list[float]:
    """Errors of every output, then of the gradients of the floating arguments that require one.

    `op` runs on `args` as the implementation `by`; `reference` (None: `op` in plain torch) on the same in float64. The
    gradients that come in are random, or with `stride_0` the expanded ones that `.sum()` sends.
    """
    wide = [_wide(a) for a in args]
    with dispatch.use(by):
        got = _tuple(op(*args))
    with dispatch.use("torch"):
        wanted = _tuple((reference or op)(*wide))
    torch.manual_seed(seed)
    pairs = [(g, w) for g, w in zip(got, wanted) if w.requires_grad]
    slopes = [
        torch.ones((), device=g.device).expand(g.shape)
        if stride_0
        else torch.randn(g.shape, device=g.device)
        for g, _ in pairs
    ]
    found = _gradients(
        [g for g, _ in pairs], args, [s.to(g.dtype) for s, (g, _) in zip(slopes, pairs)]
    )
    right = _gradients([w for _, w in pairs], wide, [s.double() for s in slopes])
    assert len(found) == len(right)
    for a, b in zip((*got, *found), (*wanted, *right)):
        assert a.shape == b.shape
    return [error(a, b) for a, b in zip((*got, *found), (*wanted, *right))]


def bits(op: Callable[..., Any], args: list[Any], by: str) -> list[Tensor]:
    """Outputs and gradients of one run, to be compared bit for bit with another."""
    with dispatch.use(by):
        out = _tuple(op(*args))
    out = [x for x in out if x.requires_grad]
    return [*out, *_gradients(out, args, [torch.full_like(x, 0.5) for x in out])]


def _gradients(out: list[Tensor], args: list[Any], slopes: list[Tensor]) -> list[Tensor]:
    leaves = [
        x
        for a in args
        for x in (a if isinstance(a, list) else [a])
        if isinstance(x, Tensor) and x.requires_grad
    ]
    return list(torch.autograd.grad(out, leaves, slopes)) if leaves else []


def _wide(value: Any) -> Any:
    if isinstance(value, list):
        return [_wide(v) for v in value]
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
