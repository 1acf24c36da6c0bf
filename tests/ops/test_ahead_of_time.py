"""Every Triton kernel compiles for sm_80 and sm_90 without a GPU, at shapes of Molmo-7B-D, and spills no register."""

import importlib
import os
import pkgutil
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed (pip install molmo_ds[dev])")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip(
        "TRITON_INTERPRET=1: kernels cannot be compiled in this process", allow_module_level=True
    )

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from molmo_ds import ops  # noqa: E402
from molmo_ds.ops.crops import triton as crops  # noqa: E402
from molmo_ds.ops.pool_patches import gather_triton as gather  # noqa: E402
from molmo_ds.ops.pool_patches import triton as pool  # noqa: E402
from molmo_ds.ops.splice import triton as splice  # noqa: E402
from molmo_ds.ops.weighted_cross_entropy import triton as loss  # noqa: E402

# kernel, types, constants, warps
Case = tuple[ModuleType, str, dict[str, str], dict[str, object], int]

POOL = ("d", "H", "W", "MASKED", "BW", "BH", "BD")


def pool_case(name: str, size: int, width: int, masked: bool) -> Case:
    _, values = pool.launch(torch.empty(1, size, 16, width, device="meta"), masked)
    types = {
        "q": "*bf16",
        "k": "*bf16",
        "v": "*bf16",
        "windows": "*i64",
        "scale": "fp32",
        "grad": "*bf16",
    }
    types |= dict.fromkeys(("out", "of_q", "of_k", "of_v"), "*bf16")
    return pool, name, types, dict(zip(POOL, values)), 4


SPLICE = {
    "ids": "*i64",
    "base": "*bf16",
    "extra": "*bf16",
    "features": "*bf16",
    "row_at": "*i32",
    "out": "*bf16",
    "E": "i32",
    "D": "i32",
}
SPLICE |= {"grad": "*bf16", "positions": "*i64", "words": "*i64", "order": "*i64", "ends": "*i64"}
GATHER = {
    "layer": "*bf16",
    "shares": "*fp32",
    "pad_embed": "*bf16",
    "windows": "*i64",
    "weights": "*fp32",
    "features": "*bf16",
}
GATHER |= {
    "means": "*bf16",
    "of_features": "*bf16",
    "of_means": "*bf16",
    "order": "*i64",
    "starts": "*i64",
    "out": "*bf16",
}
GATHER |= dict.fromkeys(("P", "S", "D", "F", "column"), "i32")
CROPS = {"images": "*u8", "out": "*fp32", "rows": "i32", "columns": "i32"}
CROPS |= dict.fromkeys(("m0", "m1", "m2", "s0", "s1", "s2"), "fp32")
ROWS = {
    "logits": "*bf16",
    "labels": "*i64",
    "weights": "*fp32",
    "sums": "*fp32",
    "z_loss": "fp32",
    "V": "i32",
    "stride": "i32",
}

CASES = [
    (crops, "patches_kernel", CROPS, {"PATCH": 14, "BLOCK": 1024}, 4),
    (splice, "splice_kernel", SPLICE, {"BLOCK": 1024}, 4),
    (splice, "features_backward_kernel", SPLICE, {"BLOCK": 1024}, 4),
    (splice, "base_backward_kernel", SPLICE, {"BLOCK": 1024}, 4),
    (gather, "gather_kernel", GATHER, {"W": 4, "K": 2, "BLOCK": 1024}, 4),
    (gather, "gather_kernel", GATHER, {"W": 9, "K": 2, "BLOCK": 1024}, 4),
    (gather, "gather_backward_kernel", GATHER, {"W": 4, "BLOCK": 1024}, 4),
    *(
        pool_case(n, w, d, w == 9)
        for n in ("pool_kernel", "pool_backward_kernel")
        for w in (4, 9)
        for d in (64, 72)
    ),
    (loss, "rows_kernel", ROWS, {"GRAD": True, "BLOCK": 4096}, 8),
    (loss, "rows_kernel", ROWS, {"GRAD": False, "BLOCK": 4096}, 8),
]


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_spills(
    capability: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    covered = set()
    spilled = []
    narrow = []
    with capsys.disabled():
        print(
            f"\nsm_{capability}: kernel, constants, registers, stack, shared bytes, local bytes, loads of 16 bytes"
        )
        for module, name, types, constants, warps in CASES:
            kernel = getattr(module, name)
            registers, stack, shared, local, wide = usage(
                kernel, types, constants, warps, capability, tmp_path
            )
            print(
                f"  {name:26s} {registers:4d} {stack:4d} {shared:6d} {local:4d} {wide:4d}  {constants}"
            )
            covered.add(kernel)
            if stack or local:
                spilled.append(name)
            if not wide and module is not crops:  # which reads lines of 42 bytes
                narrow.append(name)
    modules = [
        importlib.import_module(m.name)
        for m in pkgutil.walk_packages(ops.__path__, "molmo_ds.ops.")
    ]
    named = [
        pair for module in modules for pair in vars(module).items() if not pair[0].startswith("_")
    ]
    kernels = {value for _, value in named if isinstance(value, triton.JITFunction)}
    assert covered == kernels
    assert not spilled
    assert not narrow


def usage(
    kernel: triton.JITFunction,
    types: dict,
    constants: dict,
    warps: int,
    capability: int,
    folder: Path,
) -> tuple[int, ...]:
    """Registers, stack, shared and local memory of one compiled kernel, and how many loads move 16 bytes at once."""
    signature = {n: "constexpr" if n in constants else types[n] for n in kernel.arg_names}
    aligned = {"D", "F", "V", "stride", "column"}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(kernel.arg_names)
        if signature[n].startswith("*") or n in aligned
    }
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps}
    )
    (folder / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    out = subprocess.run(
        [tool, "-res-usage", folder / "kernel.cubin"], capture_output=True, text=True, check=True
    )
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", out.stdout)
    assert found, out.stdout
    wide = re.findall(r"ld\.global\S*\.(?:v4\.[bf]32|v8\.b16|v2\.b64)", compiled.asm["ptx"])
    return *map(int, found.groups()), len(wide)
