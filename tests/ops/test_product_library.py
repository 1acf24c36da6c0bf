"""The library of products: measured once on a machine, one choice for every process after that."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from molmo_ds.ops import cpu_library, dispatch, linear
from molmo_ds.ops.linear import library

SAY = "from molmo_ds.ops.linear import library; print(library.fastest('rows'))"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cached = (library.way, library.bf16_gain, library.columns_are_faster)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for function in cached:
        function.cache_clear()
    yield tmp_path / "molmo_ds"
    for function in cached:
        function.cache_clear()


def measured(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Ways with these names, in this order, and what they take."""
    monkeypatch.setattr(library, "ways", lambda: dict.fromkeys(seconds, F.linear))
    monkeypatch.setattr(library, "measure", lambda *_: seconds)


@pytest.mark.parametrize("kind", ["rows", "sums"])
@pytest.mark.parametrize(
    ("own", "mkl", "onednn", "wanted"),
    [
        (1.0, 0.96, 0.96, "own"),
        (1.0, 0.95, 1.0, "mkl"),
        (1.0, 0.95, 0.91, "mkl"),
        (1.0, 0.96, 0.95, "onednn"),
        (1.2, 1.0, 0.9, "onednn"),
    ],
)
def test_a_later_way_must_be_a_twentieth_faster(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    own: float,
    mkl: float,
    onednn: float,
    wanted: str,
) -> None:
    measured(monkeypatch, own=own, mkl=mkl, onednn=onednn)
    assert library.fastest(kind) == wanted
    (file,) = cache.iterdir()
    assert file.name.startswith(f"{kind}-") and json.loads(file.read_text())["fastest"] == wanted


def test_without_our_kernel_pytorch_s_own_choice_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_library, "load", object)
    assert list(library.ways())[:2] == ["own", "mkl"]
    monkeypatch.setattr(cpu_library, "load", lambda: None)
    assert next(iter(library.ways())) == "mkl" and "own" not in library.ways()


def test_a_way_that_is_no_longer_there_is_not_taken(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, own=1.0, mkl=2.0)
    assert library.fastest("sums") == "own"
    measured(monkeypatch, mkl=2.0)  # the compiler was removed, and PyTorch is another
    assert library.fastest("sums") == "mkl"


def test_the_first_choice_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, mkl=1.0, onednn=0.5)
    assert library.fastest("rows") == "onednn"
    measured(monkeypatch, mkl=1.0, onednn=2.0)
    assert library.fastest("rows") == "onednn"
    library.keep(library._file("rows"), {"fastest": "mkl"})  # a rank that measured at the same time
    said = subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "onednn"
    assert len(list(cache.glob("*.json"))) == 1


def test_without_a_file_the_choice_is_mkl(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measured(monkeypatch, mkl=1.0, onednn=0.5)
    cache.write_text("a file where the folder would be")
    assert library.fastest("rows") == "mkl"
    assert "MKL is used" in caplog.text


def test_a_damaged_file_is_named(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = library._file("rows")
    file.parent.mkdir()
    file.write_text("{")
    assert library.fastest("rows") == "mkl"
    assert str(file) in caplog.text


def test_all_ways_are_measured_on_the_same_products() -> None:
    with FakeTensorMode(), torch.device("meta"):
        seconds = library.measure(library.ways(), library.of_layer)
    assert list(seconds) == list(library.ways()) and min(seconds.values()) > 0
    a, b, bias = torch.randn(70, 30), torch.randn(50, 30), torch.randn(50)
    for multiply in library.ways().values():
        torch.testing.assert_close(multiply(a, b, bias), a @ b.T + bias)


def test_outputs_and_gradients_of_inputs_are_rows_those_of_weights_sums(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr(library, "way", lambda kind: asked.append(kind) or F.linear)
    x = torch.randn(512, 64, requires_grad=True)
    weight = torch.randn(64, 64, requires_grad=True)
    with dispatch.use("cpu"):
        linear.linear(x, weight).square().sum().backward()
    assert asked == ["rows", "rows", "sums"]


def has_bf16(monkeypatch: pytest.MonkeyPatch, whether: bool) -> None:
    monkeypatch.setattr(library, "has_bf16", lambda: whether)


def test_the_gain_of_bf16_is_measured_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_bf16(monkeypatch, True)
    monkeypatch.setattr(library, "measure", lambda *_: {"fp32": 4.0, "bf16": 1.0})
    assert library.bf16_gain() == 4.0
    library.bf16_gain.cache_clear()
    monkeypatch.setattr(library, "measure", lambda *_: {"fp32": 4.0, "bf16": 8.0})
    assert library.bf16_gain() == 4.0
    (file,) = cache.iterdir()
    assert file.name.startswith("half-")


def test_a_cpu_without_bf16_is_not_measured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_bf16(monkeypatch, False)
    monkeypatch.setattr(library, "measure", lambda *_: pytest.fail("measured"))
    assert library.bf16_gain() == 0.0 and not cache.exists()


def test_a_gain_that_cannot_be_kept_is_none(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    has_bf16(monkeypatch, True)
    monkeypatch.setattr(library, "measure", lambda *_: {"fp32": 4.0, "bf16": 1.0})
    cache.write_text("a file where the folder would be")
    assert library.bf16_gain() == 0.0
    assert "fp32 is used" in caplog.text


def test_a_gain_that_is_no_number_is_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    has_bf16(monkeypatch, True)
    file = library._file("half")
    file.parent.mkdir()
    file.write_text('{"bf16_gain": "much"}')
    assert library.bf16_gain() == 0.0
    assert str(file) in caplog.text


def test_the_products_of_bf16_are_measured_with_their_casts() -> None:
    a, b = torch.randn(70, 30), torch.randn(50, 30)
    out = library.in_bf16(a, b)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), a @ b.T, rtol=2e-2, atol=0.2)


@pytest.mark.parametrize(("seconds", "faster"), [(0.9, True), (0.95, False), (1.2, False)])
def test_columns_must_be_a_tenth_faster(
    cache: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, faster: bool
) -> None:
    def few_rows(ways: dict, pairs: Callable, shapes: tuple) -> dict[str, float]:
        assert pairs is library.of_output and all(rows == 8 for rows, _, _ in shapes)
        return {"rows": 1.0, "columns": seconds}

    monkeypatch.setattr(library, "measure", few_rows)
    assert library.columns_are_faster() is faster
    (file,) = cache.iterdir()
    assert file.name.startswith("few-") and json.loads(file.read_text())["columns"] is faster


def test_weights_lie_by_rows_where_nothing_can_be_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(library, "measure", lambda *_: {"rows": 1.0, "columns": 0.5})
    cache.write_text("a file where the folder would be")
    assert not library.columns_are_faster()
    assert "they lie by rows" in caplog.text


def test_both_orders_are_measured_on_the_same_products() -> None:
    seconds = library.measure(
        {"rows": F.linear, "columns": library.by_columns}, library.of_output, ((8, 30, 50),)
    )
    assert set(seconds) == {"rows", "columns"} and min(seconds.values()) > 0
    a, b = torch.randn(8, 30), torch.randn(50, 30)
    again = b.view(30, 50).T  # the same memory, read as a weight by columns
    torch.testing.assert_close(library.by_columns(a, b), a @ again.T)
