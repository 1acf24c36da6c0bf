"""Which implementation of an op runs: the one seam between the network and its kernels."""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

PREFERENCE = ("cuda", "triton", "cpu", "torch")
_table: dict[str, dict[str, tuple[Callable, Callable[..., bool]]]] = {}  # op -> name -> (function, usable)
_forced: str | None = os.environ.get("MOLMO_DS_OPS")  # "torch" turns every kernel off
if _forced not in (None, "", *PREFERENCE):
    raise ValueError(f"MOLMO_DS_OPS is '{_forced}'; set it to one of {', '.join(PREFERENCE)} or leave it out.")
_TRITON = importlib.util.find_spec("triton") is not None


def implements(op: str, name: str, usable: Callable[..., bool] = lambda *args: True) -> Callable:
    """Register a function as the `name` ("torch", "cpu", "triton" or "cuda") version of `op`."""

    def register(function: Callable) -> Callable:
        _table.setdefault(op, {})[name] = (function, usable)
        return function

    return register


def call(op: str, *args: Any) -> Any:
    """Run the most preferred implementation that says it can take these arguments."""
    for name in (_forced,) if _forced in _table[op] else PREFERENCE:
        if name in _table[op]:
            function, usable = _table[op][name]
            if name == _forced or usable(*args):
                return function(*args)
    raise AssertionError(f"no implementation of {op} takes these arguments")


def allows(name: str) -> bool:
    """Whether `name` may run: nothing else is forced."""
    return _forced in (None, name)


@contextlib.contextmanager
def use(name: str | None) -> Iterator[None]:
    """Force one implementation inside the block (tests and benchmarks)."""
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def on_gpu(*tensors: torch.Tensor) -> bool:
    """Whether a Triton kernel can take these: on a GPU, single precision or less, Triton there."""
    known = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)
    return all(t.is_cuda and t.dtype in known for t in tensors) and _TRITON
