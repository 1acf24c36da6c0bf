"""What a released folder, or our export, says of itself: its architecture, how it crops, how it is asked."""

import json
from typing import Any

from molmo_ds.architecture import MolmoConfig
from molmo_ds.config import PromptConfig
from molmo_ds.files import Place
from molmo_ds.model.families.molmo import OWN, from_released
from molmo_ds.settings import from_dict, to_dict

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
# settings of PromptConfig that decide how a question is put
PROMPTS = ("message_format", "always_start_with_space")
# of a family's weights that say nothing themselves: the released models, as they were fine-tuned
FAMILY = {
    "molmo": PromptConfig(),
    # allenai/molmo2 f3cb108, launch_scripts/sft.py
    "molmo2": PromptConfig(
        message_format="chat",
        system_prompt="demo_or_style_v2",
        prompt_templates="uber_model_v2",
        pointing_format="html-v2",
        root_length=True,
    ),
    # mattw-ai2/robo_mm_olmo_gantry 6832f80, launch_scripts/train_he_qa.py
    "hemolmo": PromptConfig(always_start_with_space=False, image_last=True),
}


def read_json(folder: Place, name: str = "config.json") -> dict[str, Any]:
    """A folder's JSON file; ValueError if there is none, or if it holds no values by name."""
    try:
        values = json.loads((folder / name).read_text())
    except OSError:
        raise ValueError(f"{folder} has no {name}; give the folder of a model.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / name} is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{folder / name} holds no settings by name; copy the file again.")
    return values


def read(folder: Place) -> MolmoConfig:
    """The architecture, with crops as preprocessor_config.json has them; ours repeats there what `molmo_ds` holds.

    Raises ValueError for a folder of another kind, or a damaged one.
    """
    values = read_json(folder)
    config = _made(folder, values)
    if OWN in values or not (folder / PREPROCESSOR).is_file():
        return config
    said = read_json(folder, PREPROCESSOR)
    given = {
        name: said[name] for name in ("max_crops", "overlap_margins") if said.get(name) is not None
    }
    return from_dict(MolmoConfig, to_dict(config) | {"images": to_dict(config.images) | given})


def prompts(folder: Place, family: str) -> PromptConfig:
    """How a folder's model is asked: as the released ones of its family, unless processor_config.json says otherwise.

    Our export does; a released folder does not.
    """
    if not (folder / PROCESSOR).is_file():
        return FAMILY[family]
    said = read_json(folder, PROCESSOR)
    given = {name: said[name] for name in PROMPTS if name in said}
    return from_dict(PromptConfig, to_dict(FAMILY[family]) | given)


def _made(folder: Place, values: dict[str, Any]) -> MolmoConfig:
    try:
        return from_released(values)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{folder / 'config.json'} lacks or garbles {error}; copy the file again."
        ) from None
