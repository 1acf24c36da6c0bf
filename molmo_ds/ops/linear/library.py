"""How fast this kind of CPU multiplies matrices, by our kernel, library and type: measured once, kept in a file.

Every rank and every later run of the machine must use the same one, or a resumed run would round otherwise: the first
process that has measured leaves a file in CACHE/molmo_ds, and all others read it. HASH in its name stands for the CPU
and the version of PyTorch; CACHE is $XDG_CACHE_HOME or ~/.cache. The files:

- `rows-HASH.json`: the way to float32 products of rows, as a layer's outputs and its inputs' gradients are;
- `sums-HASH.json`: the same for sums over rows, as weights' gradients are;
- `half-HASH.json`: bf16 beside float32;
- `few-HASH.json`: the order in memory of a weight that a few rows are multiplied with.
"""

import contextlib
import functools
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from molmo_ds.ops import cpu_library, machine
from molmo_ds.ops.linear import few, many

ROUNDS = 5
# of the measured products: wide and narrow layers at some hundred tokens
SHAPES = ((512, 512, 1024), (1024, 256, 512))
# of a step of decoding: some rows at a time, narrow and wide
FEW = ((8, 512, 1408), (8, 1408, 512))
KEPT = {  # kind of file -> (its key, what that is, what is done without it)
    "rows": ("fastest", "The fastest way to products of rows", "MKL is used"),
    "sums": ("fastest", "The fastest way to sums over rows", "MKL is used"),
    "half": ("bf16_gain", "The gain of bf16", "fp32 is used"),
    "few": ("columns", "The faster order of weights", "they lie by rows"),
}
# what stands later must be so much faster to be taken: libraries after our kernel, columns after rows
GAIN = 1.05
ORDER_GAIN = 1.1

log = logging.getLogger(__name__)
Ways = dict[str, Callable[[Tensor, Tensor], Tensor]]
Shape = tuple[int, int, int]  # R, K, N
Pairs = list[tuple[Tensor, Tensor]]  # of a [R, K] and b [N, K]
Known = TypeVar("Known", str, float, bool)


@functools.cache
def way(kind: str) -> Callable[..., Tensor]:
    """The function of a [R, K], b [N, K] and a bias or None by which this machine multiplies: see `fastest`.

    Args:
        kind: "rows" = products of rows: a layer's outputs, gradients of its inputs; "sums" = sums over rows: gradients
            of weights.
    """
    return ways()[fastest(kind)]


def ways() -> Ways:
    """Those that this machine has, by name: our own kernel, whose bits depend on nothing else, MKL, and oneDNN."""
    found: Ways = {}
    if cpu_library.load() is not None:
        found["own"] = many.product
    found["mkl"] = F.linear
    if has_onednn():
        found["onednn"] = onednn
    return found


def fastest(kind: str) -> str:
    """The way's name, by the file or, where there is none yet, by a measurement.

    A file that cannot be kept or read leaves PyTorch's own choice, MKL, since ranks could not agree on another.
    """
    pairs = {"rows": of_rows, "sums": of_sums}[kind]
    name = _known(kind, lambda: _by_way(pairs), "mkl")
    return name if name in ways() else "mkl"


@functools.cache
def bf16_gain() -> float:
    """Times that bf16 products, casts included, are faster than this machine's of float32.

    0 where the CPU has no instructions for them, or where the file cannot be kept or read.
    """
    if not has_bf16():
        return 0.0
    return _known("half", _by_type, 0.0)


@functools.cache
def columns_are_faster() -> bool:
    """Whether a few float32 rows are multiplied faster with a weight that lies in memory column by column.

    False where the file cannot be kept or read.
    """
    return _known("few", _by_order, False)


def _by_way(pairs: Callable[..., Pairs]) -> dict[str, object]:
    seconds = measure(ways(), pairs)
    chosen = next(iter(seconds))
    for name in seconds:
        if GAIN * seconds[name] < seconds[chosen]:
            chosen = name
    return {"fastest": chosen, "seconds": seconds}


def _by_type() -> dict[str, object]:
    seconds = measure({"fp32": in_fp32, "bf16": in_bf16}, of_layer)
    return {"bf16_gain": seconds["fp32"] / seconds["bf16"], "seconds": seconds}


def _by_order() -> dict[str, object]:
    seconds = measure({"rows": F.linear, "columns": by_columns}, of_output, FEW)
    return {"columns": ORDER_GAIN * seconds["columns"] < seconds["rows"], "seconds": seconds}


def _known(kind: str, find: Callable[[], dict[str, object]], otherwise: Known) -> Known:
    """What the file of a kind says, after `find` where there is none yet; `otherwise`, told, where it can't be kept."""
    file = _file(kind)
    key, what, instead = KEPT[kind]
    try:
        if not file.exists():
            keep(file, find() | {"cpu": machine.cpu_name()})
        return type(otherwise)(json.loads(file.read_text())[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be kept in %s (%s); %s.", what, file, error, instead)
        return otherwise


def has_onednn() -> bool:
    """Whether this PyTorch holds oneDNN's product."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [R, K] @ b.T + bias for b [N, K] by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


def warn_without_bf16() -> None:
    """Say that bf16, which somebody asked for, is slow on this CPU, where it is."""
    if not has_bf16():
        log.warning(
            "This CPU has no bf16 instructions: bf16 takes many times as long as fp32 (15 times, measured on an AMD "
            "EPYC with AVX2); precision=fp32 computes as well."
        )


def in_fp32(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [R, K] @ b.T + bias for b [N, K] by this machine's way; a and b may be transposed views."""
    # rows times a weight, or sums over rows, whose factors are both turned
    return way("rows" if a.stride(1) == 1 else "sums")(a, b, bias)


def in_bf16(a: Tensor, b: Tensor) -> Tensor:
    """a [R, K] @ b.T for b [N, K], in bf16."""
    return F.linear(a.bfloat16(), b.bfloat16())


def by_columns(a: Tensor, b: Tensor) -> Tensor:
    """a [R, K] @ b.T for b [N, K], read as the [K, N] of a weight that lies in memory column by column."""
    weight = b.view(b.shape[1], b.shape[0]).T
    return few.linear(a, weight, None) if few.usable(a, weight) else F.linear(a, weight)


def of_output(x: Tensor, weight: Tensor, of_out: Tensor) -> Pairs:
    """The product of a layer x [R, K], weight [N, K] -> [R, N]."""
    return [(x, weight)]


def of_rows(x: Tensor, weight: Tensor, of_out: Tensor) -> Pairs:
    """Its product and that of the input's gradient."""
    return [(x, weight), (of_out, weight.T)]


def of_sums(x: Tensor, weight: Tensor, of_out: Tensor) -> Pairs:
    """The product of its weight's gradient."""
    return [(of_out.T, x.T)]


def of_layer(x: Tensor, weight: Tensor, of_out: Tensor) -> Pairs:
    """All three."""
    return of_rows(x, weight, of_out) + of_sums(x, weight, of_out)


def measure(
    libraries: Ways, pairs: Callable[..., Pairs], shapes: tuple[Shape, ...] = SHAPES
) -> dict[str, float]:
    """CPU-seconds of each way for products of layers of these shapes: the best of rounds, in turn.

    In one thread, since threads that wait for each other on a busy machine count as busy.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # real numbers, though the first product may be a fake one
        with torch.no_grad(), _disable_current_modes():
            return _measure(libraries, pairs, shapes)
    finally:
        torch.set_num_threads(threads)


def _measure(
    libraries: Ways, pairs: Callable[..., Pairs], shapes: tuple[Shape, ...]
) -> dict[str, float]:
    seconds = dict.fromkeys(libraries, 0.0)
    draw = torch.Generator().manual_seed(0)
    for rows, inputs, outputs in shapes:
        x = torch.randn(rows, inputs, generator=draw, device="cpu")
        weight = torch.randn(outputs, inputs, generator=draw, device="cpu")
        of_out = torch.randn(rows, outputs, generator=draw, device="cpu")
        for pair in pairs(x, weight, of_out):
            best = dict.fromkeys(libraries, float("inf"))
            for _ in range(ROUNDS):
                for name, library in libraries.items():
                    start = time.process_time()
                    library(*pair)
                    best[name] = min(best[name], time.process_time() - start)
            for name in libraries:
                seconds[name] += best[name]
    return seconds


def keep(file: Path, found: dict[str, object]) -> None:
    """Write what was found, whole, unless another process was first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".new") as new:
        new.write(json.dumps(found))
        new.flush()
        with contextlib.suppress(FileExistsError):
            os.link(new.name, file)


def has_bf16() -> bool:
    """Whether the CPU has instructions for bf16: AVX512-BF16, AMX, or Arm's; others convert each number."""
    flags = ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16")
    words = machine.instructions().split()
    return torch.backends.mkldnn.is_available() and any(flag in words for flag in flags)


def _file(kind: str) -> Path:
    return machine.kept(kind, "json")
