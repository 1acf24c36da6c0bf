"""LoRA adapters in peft's own format, out of a run and back: for an exported folder, whose modules have our names."""

import json
import re
from pathlib import Path

from safetensors.torch import save_file

from molmo_ds import files
from molmo_ds.hub import load
from molmo_ds.model import lora
from molmo_ds.weights import checkpoint
from molmo_ds.weights.tensor_files import TensorFolder
from molmo_ds.weights.tensor_writer import new_folder

PREFIX = "base_model.model.model."  # peft's wrapper, transformers' class, our network


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
    for part in ("connector", "vision", "text"):
        if part not in run.lora.components and not getattr(run.optim, part).freeze:
            raise ValueError(
                f"In {source} the {part} learnt as well, which adapters do not hold; use to-hub, merged."
            )
    names = sorted(name for name in found.pieces if ".lora_" in name)
    modules = sorted({re.escape(name.partition(".lora_")[0]) for name in names})
    settings = {
        "peft_type": "LORA",
        "r": run.lora.rank,
        "lora_alpha": run.lora.alpha,
        "lora_dropout": run.lora.dropout,
        "bias": "none",
        "target_modules": rf"(.*\.)?model\.({'|'.join(modules)})",
        "inference_mode": True,
        "base_model_name_or_path": run.init_from,
    }
    with new_folder(out) as folder:
        save_file(
            {PREFIX + name: found.whole(name) for name in names},
            folder / "adapter_model.safetensors",
        )
        (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1))


def from_peft(source: str | Path, base: str | Path, out: str | Path) -> None:
    """Adapters of peft for an exported folder, and the weights below them -> a weights folder with both merged."""
    config, tensors, tokenizer = load.open_checkpoint(base)
    weights = dict(tensors)
    source = files.place(source)
    adapters = TensorFolder(source / "adapter_model.safetensors")
    settings = json.loads((source / "adapter_config.json").read_text())
    weights |= {name.removeprefix(PREFIX): adapters.read(name) for name in adapters.names()}
    names, read = lora.merged(weights, weights.__getitem__, settings["lora_alpha"])
    load.write_weights(out, config, ((name, read(name)) for name in names), tokenizer, len(names))
