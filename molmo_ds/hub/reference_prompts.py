"""How a checkpoint of the reference is asked: what its configuration says of prompts, as a PromptConfig.

Sources: allenai/molmo at 793fa38, olmo/config.py; allenai/molmo2 at f3cb108, olmo/preprocessing/data_formatter.py.
"""

import warnings
from dataclasses import replace
from typing import Any, get_args, get_type_hints

from molmo_ds.config import PromptConfig
from molmo_ds.weights.released_config import FAMILY

MOLMO = {  # settings of a model's configuration -> those of PromptConfig
    "prompt_type": "prompt_templates",
    "message_formatting": "message_format",
    "system_prompt_kind": "system_prompt",
    "always_start_with_space": "always_start_with_space",
    "default_inference_len": "default_inference_len",
}
FORMATTER = (  # settings of Molmo2's data_formatter, which PromptConfig calls the same
    "prompt_templates",
    "message_format",
    "system_prompt",
    "always_start_with_space",
    "default_inference_len",
    "pointing_format",
    "image_last",
)
MISSING = object()
WORDS = {  # values that have another name here
    "message_format": {"qwen3": "chat"},
    "system_prompt": {None: "none"},
    "pointing_format": {"default": "percent"},
}


def prompts(values: dict[str, Any], family: str) -> PromptConfig:
    """The prompts of the `model` part of a config.yaml; as the family's released models where it says nothing.

    A form that is not known here is said in a warning, and the family's is taken.
    """
    if "data_formatter" in values:
        said = {name: values["data_formatter"].get(name, MISSING) for name in FORMATTER}
    else:
        said = {ours: values.get(theirs, MISSING) for theirs, ours in MOLMO.items()}
    given = {}
    known = get_type_hints(PromptConfig)
    for name, value in said.items():
        value = WORDS.get(name, {}).get(value, value)
        if value is MISSING:
            continue
        choices = [choice for choice in get_args(known[name]) if isinstance(choice, str)]
        if choices and value not in choices:
            warnings.warn(
                f"{name} of the checkpoint is '{value}', which is not known here; it is asked with"
                f" '{getattr(FAMILY[family], name)}'.",
                stacklevel=2,
            )
            continue
        given[name] = value
    return replace(FAMILY[family], **given)
