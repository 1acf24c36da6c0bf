"""The CUDA C++ kernels: their arithmetic as plain C++ on the CPU, and what nvcc makes of them."""

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from ops_check import errors
from torch import Tensor

from molmo_ds.ops import cuda_library, dispatch
from molmo_ds.ops.pool_patches import cuda, pool_patches


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels compiled for the CPU, one thread of the host for each of a warp."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not on the PATH: the CUDA kernels' arithmetic is not checked here")
    library = tmp_path_factory.mktemp("host") / "host.so"
    shim = Path(__file__).with_name("cuda_on_host.h")
    options = ["-std=c++20", "-O1", "-pthread", "-shared", "-fPIC", "-include", shim, "-x", "c++"]
    subprocess.run(["g++", *options, cuda.SOURCE, "-o", library], check=True, timeout=120)
    return library


def pooled(library: Path) -> type[torch.autograd.Function]:
    class Pooled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q: Tensor, k: Tensor, v: Tensor, windows: Tensor, masked: bool) -> Tensor:
            ctx.save_for_backward(q, k, v)
            ctx.windows = windows
            ctx.masked = masked
            return cuda.forward(q, k, v, windows, masked, library)

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
            grads = cuda.backward(
                grad.contiguous(), *ctx.saved_tensors, ctx.windows, ctx.masked, library
            )
            return *grads, None, None

    return Pooled


# lanes of a head: 8 with one in use, 8, 16 with nine in use, 32
@pytest.mark.parametrize(
    ("dtype", "width"),
    [(torch.float32, 4), (torch.float32, 32), (torch.float32, 128), (torch.bfloat16, 72)],
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [4, 9])
def test_arithmetic(on_host: Path, dtype: torch.dtype, width: int, masked: bool, size: int) -> None:
    torch.manual_seed(0)
    windows = torch.randint(-3, 9, (5, size))
    windows[1], windows[2] = -1, 1
    shapes = ((5, 3, width), (5, size, 3, width), (5, size, 3, width))
    args = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    function = pooled(on_host)
    got = errors(
        lambda *a: function.apply(*a, windows, masked),
        args,
        "torch",
        lambda *a: pool_patches(*a, windows, masked),
    )
    assert max(got) <= (1e-5 if dtype == torch.float32 else 1e-2)


def test_unknown_windows_are_refused(on_host: Path) -> None:
    with pytest.raises(RuntimeError, match="code -1"):
        cuda.forward(
            torch.ones(1, 1, 4),
            *[torch.ones(1, 5, 1, 4)] * 2,
            torch.zeros(1, 5).long(),
            False,
            on_host,
        )


def test_asking_for_it_by_name_works_without_it() -> None:
    args = [
        torch.randn(2, 1, 3),
        torch.randn(2, 5, 1, 3),
        torch.randn(2, 5, 1, 3),
        torch.zeros(2, 5).long(),
        False,
    ]
    with dispatch.use("cuda"):
        got = pool_patches(*args)
    assert torch.equal(got, pool_patches(*args))


def test_nvcc(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on the PATH: the CUDA kernels are not compiled here")
    library = cuda_library.build(tmp_path / "build" / "libmolmo_ds.so")
    assert cuda_library.load(library) is not None
    loaded = cuda.kernels(library)
    if not torch.cuda.is_available():  # it loads, and says so when it is asked to run
        code = loaded.molmo_pool_patches(*[None] * 5, 1, 1, 64, 4, 1, None)
        assert code > 0
    triton = pytest.importorskip(
        "triton", reason="Triton's wheel brings cuobjdump, which reads the register counts"
    )
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    out = subprocess.run(
        [tool, "-res-usage", library], capture_output=True, text=True, check=True
    ).stdout
    parts = re.split(r"arch = sm_(\d+)", out)[1:]
    usage = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    found = [(on, *f) for on, part in zip(parts[::2], parts[1::2]) for f in re.findall(usage, part)]
    # forward and backward, two types, windows of 4 and 9, three numbers of lanes, two GPUs
    assert len(found) == 2 * 24
    with capsys.disabled():
        for name, on in itertools.product(("forward", "backward"), ("80", "90")):
            most = [
                max(int(f[i]) for f in found if name in f[1] and f[0] == on) for i in (2, 3, 4, 5)
            ]
            print(
                "\nsm_{} {}: at most {} registers, {} stack, {} shared, {} local bytes".format(
                    on, name, *most
                )
            )
    assert not [f for f in found if int(f[3]) or int(f[5])]
