"""What a released folder, or our export, says of itself: its architecture, how it crops, how it is asked."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from molmo_ds.architecture import MolmoConfig
from molmo_ds.config import PromptConfig
from molmo_ds.files import Place
from molmo_ds.model.families.molmo import OWN, from_released
from molmo_ds.model.families.molmo2 import refuse_unknown
from molmo_ds.settings import from_dict, to_dict

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
VIDEO = "video_preprocessor_config.json"
# fields of the last, which only Molmo2 has -> those of VideoConfig
FRAMES = {
    "num_frames": "max_frames",
    "max_fps": "max_fps",
    "frame_sample_mode": "frame_sample_mode",
    "pooling_size": "pooling_size",
}
TOKENS = {  # fields of Molmo2's processor_config.json that mean other tokens with any other value
    "use_single_crop_col_tokens": False,
    "use_single_crop_start_token": True,
    "video_use_col_tokens": False,
    "use_frame_special_tokens": True,
}
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
    """The architecture, with crops and frames as its processor has them; ours repeats there what `molmo_ds` holds.

    Raises ValueError for a folder of another kind, or a damaged one.
    """
    values = read_json(folder)
    config = _made(folder, values)
    if OWN in values or not any((folder / name).is_file() for name in (PREPROCESSOR, PROCESSOR)):
        return config
    said = _processor(folder, PREPROCESSOR, "image_processor")
    given = {
        name: said[name] for name in ("max_crops", "overlap_margins") if said.get(name) is not None
    }
    made = to_dict(config)
    if config.family == "molmo2":
        tokens = read_json(folder, PROCESSOR) if (folder / PROCESSOR).is_file() else {}
        refuse_unknown(tokens, TOKENS)
        given["use_col_tokens"] = tokens.get("image_use_col_tokens", True)
        made["connector"]["pooling_size"] = _side(said.get("pooling_size", 2))
        made["video"] |= _frames(_processor(folder, VIDEO, "video_processor"))
        # its processor has one number, which here stays that of several pictures whatever a user asks for
        given["several_max_crops"] = given.get("max_crops", config.images.several_max_crops)
    made["images"] |= given
    return from_dict(MolmoConfig, made)


def prompts(folder: Place, family: str) -> PromptConfig:
    """How a folder's model is asked: as the released ones of its family, unless processor_config.json says otherwise.

    Our export does; a released folder does not.
    """
    if not (folder / PROCESSOR).is_file():
        return FAMILY[family]
    said = read_json(folder, PROCESSOR)
    given = {name: said[name] for name in PROMPTS if name in said}
    return from_dict(PromptConfig, to_dict(FAMILY[family]) | given)


def _processor(folder: Place, name: str, part: str) -> dict[str, Any]:
    """The settings of a processor's part: a file, or, as transformers 5 saves it, a part of processor_config.json."""
    if (folder / name).is_file():
        return read_json(folder, name)
    whole = read_json(folder, PROCESSOR) if (folder / PROCESSOR).is_file() else {}
    return whole.get(part) or {}


def _frames(said: dict[str, Any]) -> dict[str, Any]:
    found = {ours: said[theirs] for theirs, ours in FRAMES.items() if theirs in said}
    if "pooling_size" in found:
        found["pooling_size"] = _side(found["pooling_size"])
    return found


def _side(pooling: Any) -> Any:
    """The side of a square window; another is a value that no setting takes."""
    if isinstance(pooling, list) and len(set(pooling)) == 1:
        return pooling[0]
    return pooling


def _made(folder: Place, values: dict[str, Any]) -> MolmoConfig:
    with whole(folder / "config.json"):
        return from_released(values)


@contextlib.contextmanager
def whole(file: Place) -> Iterator[None]:
    """Turn whatever comes of reading values that lack a name, or have another form, into a sentence about the file."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{file} lacks or garbles {error}; copy the file again.") from None
    except ValueError as error:
        if str(error).endswith("."):  # ours
            raise
        raise ValueError(
            f"{file} holds a value that is none ({error}); copy the file again."
        ) from None
