"""The seam: which implementation runs."""

import os
import subprocess
import sys

import pytest
import torch

from molmo_ds.ops import dispatch


def test_the_most_preferred_usable_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_forced", None)
    monkeypatch.setattr(dispatch, "_table", {})
    dispatch.register("op", "torch", lambda x: "torch")
    dispatch.register("op", "triton", lambda x: "triton", lambda x: x > 0)
    dispatch.register("op", "cuda", lambda x: "cuda", lambda x: x > 1)
    assert [dispatch.call("op", x) for x in (0, 1, 2)] == ["torch", "triton", "cuda"]
    with dispatch.use("triton"):
        assert dispatch.call("op", 0) == "triton"
    with dispatch.use("torch"):
        assert dispatch.call("op", 2) == "torch"
    assert dispatch.call("op", 2) == "cuda"


def test_a_forced_name_that_an_op_does_not_have_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "_table", {})
    dispatch.register("op", "torch", lambda: "torch")
    with dispatch.use("cuda"):
        assert dispatch.call("op") == "torch"


def test_kernels_need_a_gpu_and_at_most_single_precision() -> None:
    class OnGpu:
        is_cuda = True

        def __init__(self, dtype: torch.dtype):
            self.dtype = dtype

    assert not dispatch.on_gpu(torch.ones(1))
    assert dispatch.on_gpu(OnGpu(torch.bfloat16), OnGpu(torch.float32)) == dispatch.HAS_TRITON
    assert not dispatch.on_gpu(OnGpu(torch.float32), OnGpu(torch.float64))


def test_an_unknown_name_in_the_environment() -> None:
    code = "import molmo_ds.ops.dispatch"
    environment = {**os.environ, "MOLMO_DS_OPS": "numba"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (
        "ValueError: MOLMO_DS_OPS is 'numba'; set it to one of cuda, triton, cpu, torch"
        in done.stderr
    )
