"""Environments of the tools that exports are run in: built once with pip, and kept in a folder of their own.

`MOLMO_ENVIRONMENTS` names that folder (default: ~/.cache/molmo_ds/environments). One of an older transformers holds
that package and what it pins, some 60 MB, and takes the rest (torch) from the Python that runs the tests.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HTTP = ["httpx", "httpcore", "h11", "anyio", "sniffio"]  # of huggingface_hub before 2
# PyPI's are built for CUDA, which a torch for CPUs refuses; nothing here needs them
FOR_CUDA = ["torchvision", "torchaudio", "torchcodec"]
PINS = {  # transformers -> what it needs in other versions than ours
    "4.46.3": ["tokenizers==0.20.3", "huggingface_hub==0.36.0", "datasets==3.6.0"],
    "4.51.3": ["tokenizers==0.21.4", "huggingface_hub==0.36.0", "datasets==3.6.0"],
    "4.57.6": ["tokenizers==0.22.2", "huggingface_hub==0.36.0", "datasets==3.6.0"],
    "5.0.0": ["tokenizers==0.22.2", "huggingface_hub==1.3.0", "datasets==3.6.0", *HTTP],
    "5.5.4": ["tokenizers==0.22.2", "huggingface_hub==1.5.0", "datasets==3.6.0", *HTTP],
    "5.10.4": ["tokenizers==0.22.2", "huggingface_hub==1.5.0", "datasets==3.6.0", *HTTP],
    "5.24.0": [],
}


def folder() -> Path:
    """Where environments are kept."""
    place = os.environ.get("MOLMO_ENVIRONMENTS", "~/.cache/molmo_ds/environments")
    return Path(place).expanduser()


def transformers_at(version: str) -> Path:
    """The folder of an older transformers, built where it is missing; skips the test where pip cannot."""
    wanted = [f"transformers=={version}", *PINS[version]]
    return _installed(folder() / f"transformers-{version}", ["--no-deps", *wanted])


def package_at(name: str, version: str) -> Path:
    """The folder of a package of PyPI alone, beside ours, built where it is missing."""
    return _installed(folder() / f"{name}-{version}", ["--no-deps", f"{name}=={version}"])


def tool_at(name: str, version: str) -> Path:
    """The folder of a tool of PyPI with all that it needs, built where it is missing."""
    return _installed(folder() / f"{name}-{version}", [f"{name}=={version}"])


def _installed(target: Path, words: list[str]) -> Path:
    if not target.is_dir():
        options = ["--quiet", "--no-compile", "--target", str(target)]
        command = [sys.executable, "-m", "pip", "install", *options, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            pytest.skip(f"pip cannot install {words[-1]}: {done.stderr[-200:]}")
    return target


def environment_at(name: str, *packages: str, ours: bool = True) -> Path:
    """The Python of an environment of a tool; built where it is missing.

    Args:
        ours: whether it sees our packages behind its own; else pip installs all that it needs.
    """
    home = folder() / name
    python = home / "bin/python"
    if python.is_file():
        return python
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, timeout=300)
    if ours:
        (site,) = (home / "lib").glob("python3*/site-packages")
        (site / "ours.pth").write_text(sysconfig.get_path("purelib"))
        packages = (*packages, f"torch=={importlib.metadata.version('torch')}")
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        shutil.rmtree(home)
        pytest.skip(f"pip cannot install {packages[0]}: {done.stderr[-200:]}")
    gone = [str(python), "-m", "pip", "uninstall", "--yes", "--quiet", *FOR_CUDA]
    subprocess.run(gone, capture_output=True, check=True, timeout=300)
    return python


def clean(**variables: str) -> dict[str, str]:
    """Variables of a process that must not see this package."""
    keep = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
    own = {name: value for name, value in os.environ.items() if name in keep}
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return own | fixed | {"TQDM_DISABLE": "1"} | variables
