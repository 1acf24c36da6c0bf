"""LoRA adapters in peft's own format, out of a run and back: for an exported folder, which has the released names.

There queries, keys and values are one matrix, and so are gate and up. Adapters of rank r of our parts become one of as
many times r: the A's one below the other, the B's along a diagonal.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from molmo_ds import files
from molmo_ds.config import COMPONENTS
from molmo_ds.hub import load
from molmo_ds.model.families import molmo_names
from molmo_ds.weights import checkpoint
from molmo_ds.weights.tensor_files import TensorFolder
from molmo_ds.weights.tensor_writer import new_folder

PREFIX = "base_model.model."  # peft's wrapper, transformers' class
SIDES = (".lora_A.weight", ".lora_B.weight")


def to_peft(source: str | Path, out: str | Path) -> None:
    """A run's checkpoint -> adapter_config.json and adapter_model.safetensors, to be put on the export of its base.

    Raises ValueError if the run has no adapters, or if something else learnt in it, which adapters do not hold.
    """
    path = checkpoint.find(source)
    run = checkpoint.read_config(path)
    found = checkpoint.open_checkpoint(path) if (path / "manifest.json").is_file() else None
    if found is None or not run.lora.components:
        raise ValueError(
            f"{source} has no adapters; give the checkpoint of a run with lora.components."
        )
    for part in COMPONENTS:
        if part not in run.lora.components and not getattr(run.optim, part).freeze:
            raise ValueError(
                f"In {source} the {part} learnt as well, which adapters do not hold; use to-hub, merged."
            )
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}  # of the modules that several of ours became
    for rule in molmo_names.released(run.model):
        stems = [name.removesuffix(".weight") for name in rule.ours]
        if any(f"{stem}{SIDES[0]}" not in found.shapes for stem in stems):
            continue
        module = rule.theirs[0].removesuffix(".weight")
        down = [found.whole(stem + SIDES[0]) for stem in stems]
        up = [found.whole(stem + SIDES[1]) for stem in stems]
        tensors[PREFIX + module + SIDES[0]] = torch.cat(down)
        tensors[PREFIX + module + SIDES[1]] = torch.block_diag(*up)
        if len(stems) > 1:
            ranks[re.escape(module)] = len(torch.cat(down))
    modules = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in tensors}
    settings = {
        "peft_type": "LORA",
        "r": run.lora.rank,
        "lora_alpha": run.lora.alpha,
        "rank_pattern": ranks,
        "alpha_pattern": {
            module: run.lora.alpha * rank / run.lora.rank for module, rank in ranks.items()
        },
        "lora_dropout": run.lora.dropout,
        "bias": "none",
        "target_modules": rf"(.*\.)?({'|'.join(map(re.escape, sorted(modules)))})",
        "inference_mode": True,
        "base_model_name_or_path": run.init_from,
    }
    with new_folder(out) as folder:
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1))


def from_peft(source: str | Path, base: str | Path, out: str | Path) -> None:
    """Adapters of peft for an exported folder, and the weights below them -> a weights folder with both merged.

    Raises ValueError for adapters of another kind than LoRA, and for those of modules that the model does not have.
    """
    config, tensors, tokenizer = load.open_checkpoint(base)
    weights = dict(tensors)
    source = files.place(source)
    adapters = TensorFolder(source / "adapter_model.safetensors")
    settings = json.loads((source / "adapter_config.json").read_text())
    left = set(adapters.names())
    for rule in tqdm(molmo_names.released(config), desc="adapters", leave=False):
        modules = {i: PREFIX + name.removesuffix(".weight") for i, name in enumerate(rule.theirs)}
        adapted = {i: module for i, module in modules.items() if module + SIDES[0] in left}
        if not adapted:
            continue
        theirs = rule.form.to_theirs([weights[name] for name in rule.ours])
        for i, module in adapted.items():
            down, up = (adapters.read(module + side).double() for side in SIDES)
            scale = scale_of(settings, module.removeprefix(PREFIX))
            merged = torch.addmm(theirs[i].double(), up, down, alpha=scale)
            theirs[i] = merged.to(theirs[i].dtype)
            left -= {module + side for side in SIDES}
        weights |= zip(rule.ours, rule.form.to_ours(theirs))
    if left:
        raise ValueError(
            f"{source} holds {min(left)}, which is no LoRA adapter of a matrix of this model; train adapters of its"
            " linear layers alone."
        )
    asked = load.prompts_of(base)
    load.write_weights(out, config, iter(weights.items()), tokenizer, len(weights), asked)


def scale_of(settings: dict[str, Any], module: str) -> float:
    """alpha / rank (or its root, with use_rslora) of the adapter of a module, by peft's settings."""

    def chosen(pattern: str, default: float) -> float:
        patterns = settings.get(pattern) or {}
        found = (
            value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)
        )
        return next(found, default)

    rank = chosen("rank_pattern", settings["r"])
    alpha = chosen("alpha_pattern", settings["lora_alpha"])
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)
