"""The CPU's kernels are compiled once a machine, by the first process; without a compiler the plain ops run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from molmo_ds.ops import cpu_library

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture
def environment() -> dict[str, str]:
    """Of a process that compiles for itself."""
    return {
        name: value for name, value in os.environ.items() if name not in ("MOLMO_DS_OPS", "CXX")
    }


def built(environment: dict[str, str]) -> subprocess.Popen:
    """A process that norms something and says whether it had the kernels."""
    code = (
        "import logging, torch; logging.basicConfig(level=logging.INFO)\n"
        "from molmo_ds.ops import cpu_library\nfrom molmo_ds.ops.rms_norm import rms_norm\n"
        "assert rms_norm(torch.ones(2, 3), torch.ones(3), 1e-6).shape == (2, 3)\n"
        "print('kernels' if cpu_library.load() else 'plain')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_machine_compiles_once(tmp_path: Path, environment: dict[str, str]) -> None:
    environment |= {"XDG_CACHE_HOME": str(tmp_path)}
    together = [built(environment) for _ in range(3)]
    said = [process.communicate() for process in together]
    assert [out.strip() for out, _ in said] == ["kernels"] * 3
    assert sum("Compiling the C++ kernels" in err for _, err in said) == 1
    assert len(list((tmp_path / "molmo_ds").glob("kernels-*.so"))) == 1
    out, err = built(environment).communicate()
    assert out.strip() == "kernels" and "Compiling" not in err


def test_another_machine_of_the_same_name_has_a_library_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = cpu_library.place()
    monkeypatch.setattr(cpu_library.machine, "instructions", lambda: "fma avx2")
    assert cpu_library.place() != here


@pytest.mark.parametrize("compiler", ["/nowhere/g++", "false"])
def test_without_a_compiler_the_plain_ops_run(
    tmp_path: Path, environment: dict[str, str], compiler: str
) -> None:
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "CXX": compiler}
    out, err = built(environment).communicate()
    assert out.strip() == "plain"
    assert err.count("cannot be compiled or loaded") == 1
    assert not list((tmp_path / "molmo_ds").glob("kernels-*.so"))


def test_a_damaged_library_is_said(tmp_path: Path, environment: dict[str, str]) -> None:
    environment |= {"XDG_CACHE_HOME": str(tmp_path)}
    assert built(environment).communicate()[0].strip() == "kernels"
    (library,) = (tmp_path / "molmo_ds").glob("kernels-*.so")
    library.write_bytes(b"no library")
    out, err = built(environment).communicate()
    assert out.strip() == "plain" and "cannot be compiled or loaded" in err
