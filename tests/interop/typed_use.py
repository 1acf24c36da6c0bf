"""Uses the public API as a typed program does; mypy reads it (test_typed.py), nothing runs it."""

from pathlib import Path
from typing import assert_type

from torch import Tensor

from molmo_ds import presets, settings
from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Batch
from molmo_ds.config import RunConfig
from molmo_ds.hub.export import to_hub
from molmo_ds.hub.in_vllm import InVLLM
from molmo_ds.infer.generate import Generation, Options, generate
from molmo_ds.model.molmo import Molmo
from molmo_ds.train import train


def use(batch: Batch, folder: Path) -> None:
    """Types that a caller relies on."""
    config = presets.get("tiny")
    assert_type(config, MolmoConfig)
    run = settings.load(None, ["preset=tiny"])
    assert_type(run, RunConfig)
    assert_type(train(run), int)
    model = Molmo(config)
    assert_type(model.hidden(batch), Tensor)
    assert_type(generate(model, batch, 0, Options(max_new_tokens=3)), Generation)
    assert_type(to_hub(folder, folder / "export"), InVLLM)


def misuse() -> None:
    """Mistakes that must be seen: each line is one error."""
    Options(max_new_tokens="3")
    RunConfig(max_steps=None)
    presets.get(7)
