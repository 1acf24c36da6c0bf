"""Reads golden folders: numbers that the reference implementation produced (format: data/README.md)."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

OURS = Path(__file__).parent / "data"
KINDS = ("d_qwen2", "e_olmoe", "l_llama", "o_olmo")  # the models of our own copy
METRIC_FILES = ("metrics", "metrics2")  # of D_metrics
MISSING = "missing "  # begins a parameter that stands for a file which is not there


def folder() -> Path:
    """`MOLMO_GOLDENS`, or the copy next to this file."""
    return Path(os.environ.get("MOLMO_GOLDENS") or OURS)


def need(name: str) -> Path:
    """The path of a file or folder of the goldens.

    Where it is missing the test says so: in our own copy it fails, in another folder, which need not hold every part,
    it is skipped.
    """
    path = folder() / name.removeprefix(MISSING)
    if path.exists():
        return path
    reason = f"The golden folder {folder()} has no {name.removeprefix(MISSING)}."
    if folder().resolve() == OURS.resolve():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def read_json(name: str) -> Any:
    """A JSON file of the golden folder."""
    return json.loads(need(name).read_text())


def read_tensors(name: str) -> dict[str, Tensor]:
    """A safetensors file: float16 becomes float32, `NAME_i8_div32` becomes NAME / 32, int32 becomes int64."""
    out = {}
    for key, value in load_file(need(name)).items():
        if key.endswith("_i8_div32"):
            out[key.removesuffix("_i8_div32")] = value.float() / 32
        elif value.dtype == torch.float16:
            out[key] = value.float()
        else:
            out[key] = value.long() if value.dtype == torch.int32 else value
    return out


def model_kinds() -> list[str]:
    """The models of A_model; of our own copy the known ones are always listed, so that a missing one fails."""
    there = {path.parent.name for path in folder().glob("A_model/*/meta.json")}
    known = set(KINDS) if folder().resolve() == OURS.resolve() else set()
    return sorted(there | known) or [f"{MISSING}A_model/*/meta.json"]


def listed(meta: str, *keys: str) -> list[str]:
    """The entries below `keys` of a meta file; one that is not there is listed as itself, for `need` to name."""
    path = folder() / meta
    if not path.is_file():
        return [MISSING + meta]
    entries = json.loads(path.read_text())
    for key in keys:
        entries = entries.get(key, {})
    return list(entries) or [f"{MISSING}{meta}:{'.'.join(keys)}"]


def skip_missing(*names: str) -> None:
    """End a test whose parameter stands for something that is not there."""
    for name in names:
        if name.startswith(MISSING):
            need(name)


def cases_of(name: str) -> list[dict]:
    """The cases of a metric, in whichever of METRIC_FILES holds it; another golden folder need not hold them all."""
    for file in METRIC_FILES:
        path = f"D_metrics/{file}.json"
        if (need("D_metrics") / f"{file}.json").is_file() and name in read_json(path):
            cases = read_json(path)[name]["cases"]
            assert cases, name
            return cases
    need(f"D_metrics/{' or '.join(METRIC_FILES)}.json:{name}")
    raise AssertionError
