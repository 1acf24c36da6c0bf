"""The released Molmo2's own model code in an exported folder, for transformers 4.57, which does not know Molmo2.

transformers 5.23 and later read an export without it. The code is Ai2's: it is copied from a released folder.
"""

import json
import shutil
from pathlib import Path

AUTO_MAP = {  # file of settings -> what transformers makes of which class, as in the released folders
    "config.json": {
        "AutoConfig": "configuration_molmo2.Molmo2Config",
        "AutoModelForImageTextToText": "modeling_molmo2.Molmo2ForConditionalGeneration",
    },
    "preprocessor_config.json": {
        "AutoImageProcessor": "image_processing_molmo2.Molmo2ImageProcessor",
        "AutoProcessor": "processing_molmo2.Molmo2Processor",
    },
    "video_preprocessor_config.json": {
        "AutoVideoProcessor": "video_processing_molmo2.Molmo2VideoProcessor",
        "AutoProcessor": "processing_molmo2.Molmo2Processor",
    },
    "processor_config.json": {"AutoProcessor": "processing_molmo2.Molmo2Processor"},
    "tokenizer_config.json": {"AutoProcessor": "processing_molmo2.Molmo2Processor"},
}
FILES = sorted({name.partition(".")[0] for named in AUTO_MAP.values() for name in named.values()})


def check(source: Path) -> None:
    """ValueError where a folder lacks a file of the code."""
    lacking = [f"{name}.py" for name in FILES if not (source / f"{name}.py").is_file()]
    if lacking:
        raise ValueError(
            f"{source} lacks {', '.join(lacking)}; give a folder of a released Molmo2, such as allenai/Molmo2-8B."
        )


def write(folder: Path, source: Path) -> None:
    """Copy the code, which was checked, into an exported folder; name its classes in the settings that are there."""
    for name in FILES:
        shutil.copyfile(source / f"{name}.py", folder / f"{name}.py")
    for name, classes in AUTO_MAP.items():
        path = folder / name
        if path.is_file():
            values = json.loads(path.read_text()) | {"auto_map": classes}
            path.write_text(json.dumps(values, indent=2) + "\n")
