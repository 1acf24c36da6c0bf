"""The files of examples/ that train one model, stage by stage."""

from dataclasses import dataclass
from pathlib import Path

import molmo_ds
from molmo_ds import settings
from molmo_ds.config import RunConfig

STAGES = ("captioner", "multitask")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of a recipe: its YAML files, the later over the earlier, and the overlay of its rehearsal."""

    name: str
    files: tuple[Path, ...]
    debug: Path

    def load(self, words: tuple[str, ...] = ()) -> RunConfig:
        """The real run's settings."""
        return settings.load([str(file) for file in self.files], words)


def examples_folder() -> Path:
    """The clone's examples/; ValueError where this package does not lie in a clone."""
    folder = Path(molmo_ds.__file__).parents[1] / "examples"
    if not folder.is_dir():
        raise ValueError(
            f"There is no {folder}; recipes come with a clone of the repository, not with the wheel."
        )
    return folder


def find(model: str, mixture: str, examples: Path) -> list[Stage]:
    """The two stages of a model; ValueError with the names that there are for an unknown one."""
    captioner = examples / "captioner" / f"{model}.yaml"
    multitask = examples / "multitask"
    mixed = multitask / f"{mixture}.yaml"
    known = sorted(path.stem for path in (examples / "captioner").glob("*.yaml"))
    if model not in known:
        raise ValueError(
            f"There is no recipe {captioner}; those there are: {', '.join(known) or 'none'}."
        )
    if not mixed.is_file():
        others = sorted(path.stem for path in multitask.glob("*.yaml") if path.stem not in known)
        raise ValueError(
            f"There is no mixture {mixed}; those there are: {', '.join(others) or 'none'}."
        )
    own = multitask / f"{model}.yaml"  # rates and steps of the model, over the mixture's
    debug = examples / "debug"
    return [
        Stage(name="captioner", files=(captioner,), debug=debug / "captioner.yaml"),
        Stage(
            name="multitask",
            files=(mixed, own) if own.is_file() else (mixed,),
            debug=debug / "multitask.yaml",
        ),
    ]
