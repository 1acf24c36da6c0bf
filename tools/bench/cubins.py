"""Compiles our Triton kernels to cubins for GPUs that are not there, and says what registers and memory they take.

    TRITON_INTERPRET=0 python -m molmo_ds.testing.twin tools/bench/cubins.py [--arch 80 90] [--write]

The ops run forward and backward at the widths of Molmo-7B-D on the twin. Triton compiles each kernel by the ptxas that
it brings; nothing is launched, so what comes out is not looked at. --write puts the table into docs/evidence/gpu.md.
"""

import argparse
import time
from collections.abc import Iterator

import torch
import triton
from torch import Tensor
from triton.runtime import driver

from molmo_ds.ops import dispatch
from molmo_ds.ops.crops import normalise_patches
from molmo_ds.ops.pool_patches import gather_patches, pool_patches
from molmo_ds.ops.splice import splice
from molmo_ds.ops.weighted_cross_entropy import weighted_cross_entropy
from molmo_ds.testing import tables
from molmo_ds.testing.twin.offline import Kernel, Offline


def leaf(*size: int) -> Tensor:
    """A bf16 tensor that wants a gradient."""
    return torch.ones(size, dtype=torch.bfloat16).requires_grad_()


def outputs() -> Iterator[Tensor]:
    """Of each op with Triton kernels, of few rows."""
    pictures = torch.zeros(1, 336, 336, 3, dtype=torch.uint8)
    yield normalise_patches(pictures, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), 14)
    for size in (4, 9):
        windows = torch.arange(16 * size).view(16, size)
        layers = [leaf(1, 577, 1024), leaf(1, 577, 1024)]
        yield gather_patches(layers, torch.ones(1, 576, 2), leaf(2, 2048), windows, False)[0]
        heads = leaf(16, 16, 64), leaf(16, size, 16, 64), leaf(16, size, 16, 64)
        yield pool_patches(*heads, windows, True)
    table = torch.zeros(4096, 3584, dtype=torch.bfloat16)
    places = torch.arange(16)
    yield splice(
        torch.zeros(1, 64, dtype=torch.int64), table, leaf(128, 3584), leaf(16, 3584), places
    )
    labels = torch.zeros(16, dtype=torch.int64)
    hidden = leaf(16, 64), leaf(152064, 64)
    ce, z, _ = weighted_cross_entropy(*hidden, labels, torch.ones(16), 1e-4)
    yield ce + z


def compiled(arch: int) -> list[Kernel]:
    """The kernels of all ops."""
    offline = Offline(arch, device=arch)
    driver.set_active(offline)
    with torch.device("cuda"), dispatch.use("triton"):
        for output in outputs():
            if output.requires_grad:
                output.sum().backward()
    return list(offline.kernels.values())


def main() -> None:
    """Compile and print, or write, the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", type=int, default=[80, 90])
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    command = "TRITON_INTERPRET=0 python -m molmo_ds.testing.twin tools/bench/cubins.py"
    lines = [
        f"`{command}`, triton {triton.__version__}, {time.strftime('%Y-%m-%d')}, {tables.cpu()}:",
        "",
        "| kernel | sm | registers | stack, bytes | spilled to local memory | shared memory | cubin |",
        "|---|---|---|---|---|---|---|",
    ]
    for arch in args.arch:
        for kernel in sorted(compiled(arch), key=lambda kernel: (kernel.name, kernel.cubin)):
            used = kernel.usage()
            sizes = [f"{kernel.shared:,}", f"{len(kernel.cubin):,}"]
            cells = [kernel.name, arch, used["REG"], used["STACK"], used["LOCAL"], *sizes]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    print("\n".join(lines))
    if args.write:
        tables.write("cubins", lines)


if __name__ == "__main__":
    main()
