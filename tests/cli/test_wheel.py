"""The package as pip installs it, a wheel built from the sdist: a run from another folder, by the command molmo-ds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = (
    "molmo_ds",
    "ds_configs",
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "docs/changelog.md",
    "LICENSE",
    "hostfile.example",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds nothing but the installed package."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                source / name,
                symlinks=True,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        else:
            (source / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    sdist = tmp_path_factory.mktemp("sdist")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(sdist)!r})"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (archive,) = sdist.glob("molmo_ds-*.tar.gz")
    target = tmp_path_factory.mktemp("installed")
    options = [
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        str(target),
    ]
    command = [sys.executable, "-m", "pip", "install", *options, str(archive)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return target


def call(
    installed: Path, folder: Path, *words: str, **variables: str
) -> subprocess.CompletedProcess:
    """`molmo-ds WORDS` of the installed package in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", **variables}
    command = [str(installed / "bin/molmo-ds"), *words]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300
    )


def test_the_wheel_holds_what_is_read_at_run_time(installed: Path) -> None:
    for pattern in (
        "ds_configs/*.json",
        "ds_configs/infer/*.json",
        "ds_configs/accelerate/*.yaml",
        "hostfile.example",
    ):
        theirs = {path.relative_to(ROOT) for path in ROOT.glob(pattern)}
        assert theirs
        for path in theirs:
            assert (installed / "molmo_ds" / path).read_bytes() == (ROOT / path).read_bytes()
    others = [
        path
        for path in (ROOT / "molmo_ds").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".so")
    ]
    assert {"py.typed", "page.css", "README.md", "pool_patches.cu"} <= {
        path.name for path in others
    }
    for path in others:
        assert (installed / path.relative_to(ROOT)).is_file(), path
    assert not [path for path in installed.iterdir() if path.name in ("tests", "tools", "examples")]


def test_its_page_holds_the_readme_and_the_changelog(installed: Path) -> None:
    [file] = installed.glob("molmo_ds-*.dist-info/METADATA")
    text = file.read_text()
    assert "## Two commands" in text and "# Changelog" in text


def test_the_command_lists_the_commands(installed: Path, tmp_path: Path) -> None:
    done = call(installed, tmp_path, "--help")
    assert done.returncode == 0 and "shards make" in done.stdout, done.stderr
    assert f"{installed}/molmo_ds/ds_configs" in done.stdout


def test_a_run_with_the_default_strategy_from_another_folder(
    installed: Path, tiny_run: list[str], tmp_path: Path
) -> None:
    words = [word for word in tiny_run if not word.startswith(("strategy=", "max_steps="))]
    words += ["max_steps=2", "micro_batch=4", f"out={tmp_path / 'out'}"]
    done = call(installed, tmp_path, "train", *words, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr[-3000:]
    there = installed / "molmo_ds/ds_configs/zero3.json"
    assert (
        f"strategy=ds_configs/zero3.json: the working folder has no such file; {there} is taken."
        in done.stderr
    )
    assert (tmp_path / "out/DONE").is_file()
    # what is imported is told
    assert "| torch._dynamo\n" in done.stderr.replace(" ", "").replace("|", "| ")
    # which takes a second, and nothing was compiled
    assert "torch._inductor.compile_fx" not in done.stderr


def test_the_plan_of_another_strategy_of_the_package(installed: Path, tmp_path: Path) -> None:
    done = call(installed, tmp_path, "plan", "tiny", "ds_configs/zero1.json", "2")
    assert done.returncode == 0 and "zero1, 2 GPUs" in done.stdout, done.stderr
