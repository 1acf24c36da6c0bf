"""The one seam between the network and its kernels: which implementation of an op runs.

The autograd graph is a function of the configuration, never of what one rank's batch holds. Which parameters get
gradients, and in which order, must be the same on every rank in every step: DeepSpeed's ZeRO-2 adds gradients in the
order in which they arrive, so a rank with another order trains something else without a word. For `usable` this means:

- An op with parameters chooses by devices, types, shapes of weights, shapes that the configuration fixes and the
  environment (what is installed, autocast, compilation), and by nothing else. What depends on the sizes of a batch is
  decided inside one autograd Function, as in `ops/linear/cpu.py`.
- An op without parameters may choose by sizes as well. Autograd runs nodes by falling sequence number, that is by
  falling time of creation; a node is created after those whose output it takes, so the backward pass is the forward
  pass in exact reverse. Nodes that such an op adds or leaves out lie between those of its inputs and those of its
  users, and change the order of no others.
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

PREFERENCE = ("cuda", "triton", "cpu", "torch")
HAS_TRITON = importlib.util.find_spec("triton") is not None
# op -> name -> (function, usable)
_table: dict[str, dict[str, tuple[Callable, Callable[..., bool]]]] = {}
_forced: str | None = os.environ.get("MOLMO_DS_OPS")  # "torch" turns every kernel off
if _forced not in (None, "", *PREFERENCE):
    raise ValueError(
        f"MOLMO_DS_OPS is '{_forced}'; set it to one of {', '.join(PREFERENCE)} or leave it out."
    )


def always(*args: Any) -> bool:
    """Whether the plain version is usable."""
    return True


def register(op: str, name: str, function: Callable, usable: Callable[..., bool] = always) -> None:
    """Add the `name` ("torch", "cpu", "triton" or "cuda") implementation of `op`; `usable` takes its arguments."""
    assert name in PREFERENCE, name
    _table.setdefault(op, {})[name] = (function, usable)


def call(op: str, *args: Any) -> Any:
    """Run the most preferred implementation that says it can take these arguments, or the forced one."""
    if _forced in _table[op]:
        function, usable = _table[op][_forced]
        # others run where they would not by themselves, as in Triton's interpreter; a CPU's read the memory of float32
        if _forced != "cpu" or usable(*args):
            return function(*args)
        return call_after("cpu", op, *args)
    return _first_usable(PREFERENCE, op, args)


def call_after(name: str, op: str, *args: Any) -> Any:
    """Run the most preferred usable implementation after `name`: what a forced one does that cannot take these."""
    return _first_usable(PREFERENCE[PREFERENCE.index(name) + 1 :], op, args)


def _first_usable(names: tuple[str, ...], op: str, args: tuple) -> Any:
    known = _table[op]
    for name in names:
        if name in known:
            function, usable = known[name]
            if usable(*args):
                return function(*args)
    raise AssertionError(f"no implementation of {op} takes these arguments")


def allows(name: str) -> bool:
    """Whether `name` may run: nothing else is forced."""
    return _forced in (None, name)


@contextlib.contextmanager
def use(name: str | None) -> Iterator[None]:
    """Force one implementation inside the block (tests and benchmarks)."""
    global _forced
    before = _forced
    _forced = name
    try:
        yield
    finally:
        _forced = before


def on_gpu(*tensors: torch.Tensor) -> bool:
    """Whether a Triton kernel can take these: on a GPU, single precision or less, Triton there."""
    known = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)
    return HAS_TRITON and all(t.is_cuda and t.dtype in known for t in tensors)
