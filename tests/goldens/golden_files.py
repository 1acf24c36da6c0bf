"""Reads golden folders: numbers that the reference implementation produced (format: data/README.md)."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

KINDS = ("d_qwen2", "e_olmoe", "l_llama", "o_olmo")


def folder() -> Path:
    """`MOLMO_GOLDENS`, or the copy beside this file."""
    return Path(os.environ.get("MOLMO_GOLDENS") or Path(__file__).parent / "data")


def read_json(name: str) -> Any:
    """A JSON file of the golden folder."""
    return json.loads((folder() / name).read_text())


def read_tensors(name: str) -> dict[str, Tensor]:
    """A safetensors file: float16 becomes float32, `NAME_i8_div32` becomes NAME / 32, int32 becomes int64."""
    out = {}
    for key, value in load_file(folder() / name).items():
        if key.endswith("_i8_div32"):
            out[key.removesuffix("_i8_div32")] = value.float() / 32
        elif value.dtype == torch.float16:
            out[key] = value.float()
        else:
            out[key] = value.long() if value.dtype == torch.int32 else value
    return out


def model_kinds() -> list[str]:
    """The models of A_model; the four known ones are always listed, so that a missing one fails."""
    return sorted({*KINDS, *(p.parent.name for p in folder().glob("A_model/*/meta.json"))})


def listed(meta: str, *keys: str) -> list[str]:
    """The entries below `keys` of a meta file; one that is not there is listed as itself, to fail in the test."""
    try:
        entries = read_json(meta)
        for key in keys:
            entries = entries[key]
        return list(entries) or [f"nothing in {meta}"]
    except (OSError, KeyError):
        return [f"missing {meta}"]
