"""Model shapes as functions: the released models, smaller relatives, and the tiny ones that tests and examples use."""

import difflib
from functools import partial

from molmo_ds.architecture import MolmoConfig
from molmo_ds.presets.hemolmo import hemolmo_7b_d, tiny_hemolmo
from molmo_ds.presets.language_models import LANGUAGE_MODELS
from molmo_ds.presets.molmo import (
    molmo_7b_d,
    molmo_7b_o,
    molmo_72b,
    molmoe_1b,
    qwen2_0b5,
    qwen2_1b5,
    with_tower,
)
from molmo_ds.presets.molmo2 import molmo2_4b, molmo2_8b, molmo2_o_7b
from molmo_ds.presets.tiny import reference_cpu, tiny, tiny_moe, tiny_molmo2, tiny_molmo2_o
from molmo_ds.presets.towers import TOWERS

WITH_TOWERS = (molmo_7b_d, molmo_7b_o, molmo_72b, molmoe_1b, qwen2_1b5, qwen2_0b5, hemolmo_7b_d)
AS_THEY_ARE = (
    molmo2_4b,
    molmo2_8b,
    molmo2_o_7b,
    reference_cpu,
    tiny,
    tiny_moe,
    tiny_molmo2,
    tiny_molmo2_o,
    tiny_hemolmo,
)
# presets that take the name of a tower
TOWERED = {preset.__name__: preset for preset in WITH_TOWERS}
TOWERED |= {name: partial(with_tower, text) for name, text in LANGUAGE_MODELS.items()}
PRESETS = TOWERED | {preset.__name__: preset for preset in AS_THEY_ARE}


def get(name: str) -> MolmoConfig:
    """A preset by name, `molmo_7b_d` or with another tower `molmo_7b_d/siglip`; ValueError names those there are."""
    known = [*PRESETS, *(f"{preset}/{tower}" for preset in TOWERED for tower in TOWERS)]
    if name not in known:
        best = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"There is no preset '{name}'; the nearest one is '{best}', there are {', '.join(PRESETS)}, and after a / "
            f"the towers {', '.join(TOWERS)}."
        )
    preset, _, vision = name.partition("/")
    return PRESETS[preset](vision) if vision else PRESETS[preset]()
