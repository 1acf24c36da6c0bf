"""The families of backbones, a file each, named as `model_type` names them; what they share is decoder.py and tower.py.

A family reads its transformers' config.json, names its tensors, and says why vLLM's Molmo cannot serve it. Its FLOPs
follow from the configuration (model/flops.py). Molmo and Molmo2 themselves are molmo.py and molmo2.py, with the names
of their tensors in molmo_names.py, which exported folders carry.
"""

from importlib import import_module
from types import ModuleType
from typing import get_args, get_type_hints

from molmo_ds.architecture import MolmoConfig, TextConfig, VisionConfig
from molmo_ds.model.families.decoder import Decoder
from molmo_ds.model.families.tower import Tower

DECODERS = get_args(get_type_hints(TextConfig)["model_type"])
TOWERS = get_args(get_type_hints(VisionConfig)["model_type"])


def decoder(model_type: str) -> Decoder:
    """The family of a `TextConfig.model_type`; ValueError names those there are."""
    if model_type not in DECODERS:
        known = f"{', '.join(DECODERS[:-1])} or {DECODERS[-1]}"
        raise ValueError(f"A language model of type '{model_type}' is not supported; use {known}.")
    return import_module(f"{__name__}.{model_type}").FAMILY


def format_of(config: MolmoConfig) -> ModuleType:
    """The module of the released format, with `to_released` and `not_servable`; ValueError where there is none."""
    family = import_module(f"{__name__}.{config.family}")
    if not hasattr(family, "to_released"):
        raise ValueError(
            f"No format of family {config.family} was ever released; keep the weights folder."
        )
    return family


def tower(model_type: str) -> Tower:
    """The family of a `VisionConfig.model_type`."""
    assert model_type in TOWERS, model_type
    return import_module(f"{__name__}.{model_type}").FAMILY
