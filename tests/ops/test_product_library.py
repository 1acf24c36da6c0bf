"""The library of products: measured once on a machine, one choice for every process after that."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from molmo_ds.ops.linear import library

SAY = "from molmo_ds.ops.linear import library; print(library.onednn_is_faster())"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.onednn_is_faster.cache_clear()
    yield tmp_path / "molmo_ds"
    library.onednn_is_faster.cache_clear()


def timed(onednn: float, mkl: float) -> dict[str, float]:
    return {"onednn": onednn, "mkl": mkl}


@pytest.mark.parametrize(("seconds", "faster"), [(0.9, True), (0.95, False), (1.2, False)])
def test_onednn_must_be_a_tenth_faster(
    cache: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, faster: bool
) -> None:
    monkeypatch.setattr(library, "measure", lambda: timed(seconds, 1.0))
    assert library.onednn_is_faster() is faster
    (file,) = cache.iterdir()
    assert json.loads(file.read_text())["onednn"] is faster


def test_the_first_choice_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "measure", lambda: timed(0.5, 1.0))
    assert library.onednn_is_faster()
    library.onednn_is_faster.cache_clear()
    monkeypatch.setattr(library, "measure", lambda: timed(2.0, 1.0))
    assert library.onednn_is_faster()
    library.keep(library._file(), {"onednn": False})  # a rank that measured at the same time
    said = subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "True"
    assert len(list(cache.iterdir())) == 1


def test_without_a_file_the_choice_is_mkl(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(library, "measure", lambda: timed(0.5, 1.0))
    cache.write_text("a file where the folder would be")
    assert not library.onednn_is_faster()
    assert "MKL is used" in caplog.text


def test_a_damaged_file_is_named(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = library._file()
    file.parent.mkdir()
    file.write_text("{")
    assert not library.onednn_is_faster()
    assert str(file) in caplog.text


def test_both_libraries_are_measured_on_the_same_products() -> None:
    with FakeTensorMode(), torch.device("meta"):
        seconds = library.measure()
    assert set(seconds) == {"mkl", "onednn"} and min(seconds.values()) > 0
    a, b, bias = torch.randn(70, 30), torch.randn(50, 30), torch.randn(50)
    if library.has_onednn():
        torch.testing.assert_close(library.onednn(a, b, bias), a @ b.T + bias)
