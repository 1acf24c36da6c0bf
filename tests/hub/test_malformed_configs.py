"""Configurations of the reference and of backbones, damaged by the hundred: a network or one sentence.

pytest tests/hub/test_malformed_configs.py --examples 1000 tries more; MOLMO_FUZZ_SEED=N tries others.
"""

import copy
import json
import os
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_reference_config import HEMOLMO, MODEL, MOLMO2

from molmo_ds.hub import configs, load
from molmo_ds.weights import released_config

SEED = int(os.environ.get("MOLMO_FUZZ_SEED", "0"))
VALUES = (
    *(None, True, False, 0, -1, 1, 2.5, 1e300, 10**40, float("nan")),
    *("", "x", "12", "\u00e9", [], [1], [[1, 2]], {}, {"a": 1}),
)
QWEN = {
    "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": False,
    "max_position_embeddings": 512, "hidden_act": "silu", "use_sliding_window": False,
}  # fmt: skip
CLIP = {
    "model_type": "clip", "vision_config": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
}  # fmt: skip


def changed(values: Any, draw: random.Random) -> Any:
    """The same with one value replaced, dropped or renamed, at any depth."""
    if isinstance(values, dict) and values and draw.random() < 0.9:
        name = draw.choice(list(values))
        deed = draw.randrange(6)
        if deed == 0:
            values.pop(name)
        elif deed == 1:
            values[f"{name}x"] = values.pop(name)
        else:
            values[name] = changed(values[name], draw)
        return values
    return draw.choice(VALUES)


def reference(values: Any, file: Path) -> None:
    file.write_text(yaml.safe_dump({"model": values}))
    load.of_reference(file)


def language_model(values: Any, file: Path) -> None:
    with released_config.whole(file):
        file.write_text(json.dumps(values))
        configs.text_config(released_config.read_json(file.parent, file.name))


def tower(values: Any, file: Path) -> None:
    with released_config.whole(file):
        file.write_text(json.dumps(values))
        configs.vision_config(released_config.read_json(file.parent, file.name), "openai")


KINDS = {
    "molmo": (MODEL, reference),
    "molmo2": (MOLMO2, reference),
    "hemolmo": (HEMOLMO, reference),
    "language model": (QWEN, language_model),
    "tower": (CLIP, tower),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_configuration(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    values, read = KINDS[kind]
    read(copy.deepcopy(values), tmp_path / "sound")
    draw = random.Random(f"{SEED} {kind}")
    refused = 0
    faults = []
    for number in range(20 * request.config.getoption("--examples")):
        damaged = copy.deepcopy(values)
        for _ in range(draw.choice((1, 1, 2))):
            damaged = changed(damaged, draw)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a form of prompts that is not known is told
                read(damaged, tmp_path / "file")
        except ValueError as error:
            refused += 1
            if not str(error).endswith(".") or "validation error" in str(error):
                faults.append(f"{number}: {error}")
        except Exception as error:
            faults.append(f"{number}: {error!r}")
    assert not faults, "\n".join(faults[:20])
    assert refused > number / 5, "the inputs are hardly damaged"


@pytest.mark.parametrize("text", ["", "[1, 2]", "model: 5", "a: [b", "\u0000", "seed: 1"])
def test_a_file_that_is_no_configuration(text: str, tmp_path: Path) -> None:
    """That of a run of ours was a KeyError."""
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config.yaml (lacks or garbles|is not YAML).*\.$"):
        load.from_reference(tmp_path, tmp_path / "out")
