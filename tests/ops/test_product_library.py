"""The library of products: measured once on a machine, one choice for every process after that."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from molmo_ds.ops.linear import library

SAY = "from molmo_ds.ops.linear import library; print(library.onednn_is_faster())"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.onednn_is_faster.cache_clear()
    library.bf16_gain.cache_clear()
    library.columns_are_faster.cache_clear()
    yield tmp_path / "molmo_ds"
    library.onednn_is_faster.cache_clear()
    library.bf16_gain.cache_clear()
    library.columns_are_faster.cache_clear()


def timed(onednn: float, mkl: float) -> dict[str, float]:
    return {"onednn": onednn, "mkl": mkl}


@pytest.mark.parametrize(("seconds", "faster"), [(0.9, True), (0.95, False), (1.2, False)])
def test_onednn_must_be_a_tenth_faster(
    cache: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, faster: bool
) -> None:
    monkeypatch.setattr(library, "measure", lambda ways: timed(seconds, 1.0))
    assert library.onednn_is_faster() is faster
    (file,) = cache.iterdir()
    assert json.loads(file.read_text())["onednn"] is faster


def test_the_first_choice_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "measure", lambda ways: timed(0.5, 1.0))
    assert library.onednn_is_faster()
    library.onednn_is_faster.cache_clear()
    monkeypatch.setattr(library, "measure", lambda ways: timed(2.0, 1.0))
    assert library.onednn_is_faster()
    library.keep(
        library._file("products"), {"onednn": False}
    )  # a rank that measured at the same time
    said = subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "True"
    assert len(list(cache.iterdir())) == 1


def test_without_a_file_the_choice_is_mkl(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(library, "measure", lambda ways: timed(0.5, 1.0))
    cache.write_text("a file where the folder would be")
    assert not library.onednn_is_faster()
    assert "MKL is used" in caplog.text


def test_a_damaged_file_is_named(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = library._file("products")
    file.parent.mkdir()
    file.write_text("{")
    assert not library.onednn_is_faster()
    assert str(file) in caplog.text


def test_both_libraries_are_measured_on_the_same_products() -> None:
    with FakeTensorMode(), torch.device("meta"):
        seconds = library.measure({"mkl": F.linear, "onednn": library.onednn})
    assert set(seconds) == {"mkl", "onednn"} and min(seconds.values()) > 0
    a, b, bias = torch.randn(70, 30), torch.randn(50, 30), torch.randn(50)
    if library.has_onednn():
        torch.testing.assert_close(library.onednn(a, b, bias), a @ b.T + bias)


def has_bf16(monkeypatch: pytest.MonkeyPatch, whether: bool) -> None:
    monkeypatch.setattr(library, "has_bf16", lambda: whether)


def test_the_gain_of_bf16_is_measured_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_bf16(monkeypatch, True)
    monkeypatch.setattr(library, "measure", lambda ways: {"fp32": 4.0, "bf16": 1.0})
    assert library.bf16_gain() == 4.0
    library.bf16_gain.cache_clear()
    monkeypatch.setattr(library, "measure", lambda ways: {"fp32": 4.0, "bf16": 8.0})
    assert library.bf16_gain() == 4.0
    (file,) = cache.iterdir()
    assert file.name.startswith("half-")


def test_a_cpu_without_bf16_is_not_measured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_bf16(monkeypatch, False)
    monkeypatch.setattr(library, "measure", lambda ways: pytest.fail("measured"))
    assert library.bf16_gain() == 0.0 and not cache.exists()


def test_a_gain_that_cannot_be_kept_is_none(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    has_bf16(monkeypatch, True)
    monkeypatch.setattr(library, "measure", lambda ways: {"fp32": 4.0, "bf16": 1.0})
    cache.write_text("a file where the folder would be")
    assert library.bf16_gain() == 0.0
    assert "fp32 is used" in caplog.text


def test_the_products_of_bf16_are_measured_with_their_casts() -> None:
    a, b = torch.randn(70, 30), torch.randn(50, 30)
    out = library.in_bf16(a, b)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), a @ b.T, rtol=2e-2, atol=0.2)


@pytest.mark.parametrize(("seconds", "faster"), [(0.9, True), (0.95, False), (1.2, False)])
def test_columns_must_be_a_tenth_faster(
    cache: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, faster: bool
) -> None:
    def measured(ways: dict, shapes: tuple, gradients: bool) -> dict[str, float]:
        assert not gradients and all(rows == 8 for rows, _, _ in shapes)
        return {"rows": 1.0, "columns": seconds}

    monkeypatch.setattr(library, "measure", measured)
    assert library.columns_are_faster() is faster
    (file,) = cache.iterdir()
    assert file.name.startswith("few-") and json.loads(file.read_text())["columns"] is faster


def test_weights_lie_by_rows_where_nothing_can_be_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(library, "measure", lambda *_, **__: {"rows": 1.0, "columns": 0.5})
    cache.write_text("a file where the folder would be")
    assert not library.columns_are_faster()
    assert "they lie by rows" in caplog.text


def test_both_orders_are_measured_on_the_same_products() -> None:
    seconds = library.measure(
        {"rows": F.linear, "columns": library.by_columns}, ((8, 30, 50),), gradients=False
    )
    assert set(seconds) == {"rows", "columns"} and min(seconds.values()) > 0
    a, b = torch.randn(8, 30), torch.randn(50, 30)
    again = b.view(30, 50).T  # the same memory, read as a weight by columns
    torch.testing.assert_close(library.by_columns(a, b), a @ again.T)
