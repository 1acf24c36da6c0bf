"""The wheel and the sdist, each as pip installs it with all that it needs into a fresh environment of another Python.

What is installed needs no clone and no compiler: the commands run with a PATH that has none.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from environments import clean, folder
from exported import picture
from PIL import Image

pytestmark = pytest.mark.everything
ROOT = Path(__file__).parents[2]
ARCHIVES = {"3.12": "*.whl", "3.13": "*.tar.gz"}
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "nvcc", "ninja", "x86_64-linux-gnu-")
SECONDS = 3600  # some 3 GB of torch and CUDA's libraries


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A fresh environment."""

    bin: Path
    tools: Path  # programs of the system, without compilers

    def call(self, *words: str, compiler: bool = False) -> str:
        """What `molmo-ds WORDS` prints."""
        system = os.environ["PATH"] if compiler else str(self.tools)
        done = subprocess.run(
            [str(self.bin / "molmo-ds"), *words],
            capture_output=True,
            text=True,
            env=clean(PATH=f"{self.bin}:{system}"),
            cwd=self.tools.parent,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this clone."""
    out = tmp_path_factory.mktemp("archives")
    source = tmp_path_factory.mktemp("source") / "clone"
    ignored = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    build = "import sys; from setuptools import build_meta as b; out = sys.argv[1];"
    build += " b.build_wheel(out); b.build_sdist(out)"  # either changes sys.argv
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=source, check=True, timeout=300)
    return out


@pytest.fixture(scope="module", params=ARCHIVES)
def installed(
    request: pytest.FixtureRequest, archives: Path, tmp_path_factory: pytest.TempPathFactory
) -> Installed:
    version = request.param
    home = folder() / f"python-{version}"
    pip = [str(home / "bin/python"), "-m", "pip", "install", "--quiet", "--no-compile"]
    (archive,) = map(str, archives.glob(ARCHIVES[version]))
    if not home.is_dir():
        subprocess.run([interpreter(version), "-m", "venv", str(home)], check=True, timeout=300)
        done = subprocess.run(
            [*pip, "-c", str(ROOT / "constraints.txt"), archive],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        if done.returncode:
            shutil.rmtree(home)
        assert done.returncode == 0, done.stderr[-3000:]
    again = [*pip, "--no-deps", "--force-reinstall", archive]  # what was kept may be of yesterday
    subprocess.run(again, check=True, timeout=SECONDS)
    tools = tmp_path_factory.mktemp("system") / "tools"
    tools.mkdir()
    for program in Path("/usr/bin").iterdir():
        if not program.name.startswith(COMPILERS):
            (tools / program.name).symlink_to(program)
    return Installed(bin=home / "bin", tools=tools)


def interpreter(version: str) -> str:
    """A Python of that version, of the PATH or of pyenv; skips the test where there is none."""
    for python in candidates(version):
        said = subprocess.run([python, "--version"], capture_output=True, text=True, timeout=60)
        if said.returncode == 0 and f"Python {version}." in said.stdout:
            return str(python)
    pytest.skip(f"There is no Python {version} here; install it, for example with pyenv.")


def candidates(version: str) -> Iterator[str | Path]:
    """Where it may be."""
    yield from filter(None, [shutil.which(f"python{version}")])
    yield from Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python")


def test_it_lists_its_commands(installed: Installed) -> None:
    assert "shards make" in installed.call("--help", compiler=True)


def test_it_trains_and_answers_without_a_compiler(
    installed: Installed, tiny_run: list[str], tmp_path: Path
) -> None:
    assert shutil.which("g++", path=str(installed.tools)) is None
    words = [word for word in tiny_run if not word.startswith(("strategy=", "max_steps="))]
    out = tmp_path / "out"
    installed.call("train", *words, "max_steps=2", "strategy=ds_configs/zero1.json", f"out={out}")
    assert (out / "DONE").is_file()
    Image.fromarray(picture(40, 30)).save(tmp_path / "a.png")
    asked = ["ask", "--checkpoint", str(out), "--image", str(tmp_path / "a.png")]
    assert installed.call(*asked, "--max-new-tokens", "4", "how bright is it?")
