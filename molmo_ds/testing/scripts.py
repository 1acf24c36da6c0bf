"""Scripts that are no package, such as tools/bench/*.py, as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]  # of the clone


def load(folder: str, name: str, *needed: str) -> ModuleType:
    """The script name.py of a folder in the clone; `needed` are the scripts of that folder that it imports by name."""
    for each in (*needed, name):
        file = ROOT / folder / f"{each}.py"
        known = sys.modules.get(each)
        if known is None:
            spec = importlib.util.spec_from_file_location(each, file)
            known = sys.modules[each] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(known)
        assert Path(known.__file__) == file, f"{each} is {known.__file__} already"
    return known
