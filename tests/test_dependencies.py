"""setup.cfg declares what the package imports, and nothing else."""

import ast
import configparser
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "flash_attn": "flash-attn",
    "liger_kernel": "liger-kernel",
    "gcp_storage_emulator": "gcp-storage-emulator",
    "lmms_eval": "lmms-eval",
}
OPTIONAL = {  # imported where they are
    "av": "video",
    "flash-attn": "flash",
    "s3fs": "buckets",
    "lmms-eval": "lmms-eval",
    "torchao": "quantized",
    "triton": "gpu",
    "wandb": "wandb",
}
BY_NAME = {"tensorboard": "torch.utils.tensorboard"}  # imported by another package of ours
TOOLS = {  # run, or imported by another package
    "flask",
    "flask-cors",
    "gcsfs",
    "mkdocs-material",
    "mkdocstrings",
    "pre-commit",
    "pytest-timeout",
    "pytest-xdist",
    "ruff",
    "setuptools",
}


def declared(section: str, option: str) -> dict[str, str]:
    """Name in small letters -> version bounds."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = [line.strip() for line in config[section][option].splitlines() if line.strip()]
    found = (re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", line) for line in lines)
    return {match[1].lower().replace("_", "-"): match[2] for match in found}


def imported(*folders: str) -> dict[str, str]:
    """Distribution -> a file that imports it, of all that is neither ours nor Python's."""
    found = {}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top != "molmo_ds":
                    found[NAMES.get(top, top).lower().replace("_", "-")] = str(path)
                if name in BY_NAME.values():
                    found |= {
                        package: str(path) for package, module in BY_NAME.items() if module == name
                    }
    return found


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    needed = imported("molmo_ds")
    del needed["vlmeval"]  # a clone that is no package of any index: docs/guides/kits.md
    for name, extra in OPTIONAL.items():
        assert needed.pop(name) and name in declared("options.extras_require", extra)
    assert set(needed) == set(declared("options", "install_requires")), needed


@pytest.mark.parametrize(
    ("extra", "folders"), [("examples", ["examples"]), ("dev", ["tests", "tools", "molmo_ds"])]
)
def test_extras_are_imported_somewhere(extra: str, folders: list[str]) -> None:
    names = set(declared("options.extras_require", extra)) - TOOLS
    names = {
        {"scikit-learn": "sklearn", "scikit-image": "skimage"}.get(name, name) for name in names
    }
    assert names <= set(imported(*folders))


def test_upper_bounds_where_private_names_are_used() -> None:
    assert declared("options", "install_requires")["deepspeed"] == ">=0.19.8,<0.20"
    assert pinned()["deepspeed"].startswith("0.19.") and pinned()["deepspeed"] >= "0.19.8"


def test_no_pin_is_torchs_own() -> None:
    """Each torch for CUDA names one triton and one of each CUDA library; another pin makes pip give up."""
    assert not [name for name in pinned() if name.startswith(("triton", "nvidia", "cuda"))]


def pinned() -> dict[str, str]:
    """Package -> version of constraints.txt."""
    return dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
