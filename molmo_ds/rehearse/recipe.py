"""The files of examples/ that train one model, stage by stage."""

from dataclasses import dataclass
from pathlib import Path

import molmo_ds
from molmo_ds import presets, settings
from molmo_ds.config import RunConfig

MIXTURE = "3.2-synthetic"  # of Molmo's second stage, where none is named
STAGES = {  # of the other families, whose files are named after them
    "molmo2": ("pretrain", "sft", "long_context"),
    "hemolmo": ("captioner", "questions"),
}
_WEIGHTS = "${oc.env:MOLMO_DATA_DIR,data}/weights"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of a recipe: its YAML files, the later over the earlier, and the overlay of its rehearsal."""

    name: str
    files: tuple[Path, ...]
    debug: Path
    words: tuple[str, ...] = ()  # overrides that make the recipe another model's

    def load(self, words: tuple[str, ...] = ()) -> RunConfig:
        """The real run's settings."""
        return settings.load([str(file) for file in self.files], [*self.words, *words])


def examples_folder() -> Path:
    """The clone's examples/; ValueError where this package does not lie in a clone."""
    folder = Path(molmo_ds.__file__).parents[1] / "examples"
    if not folder.is_dir():
        raise ValueError(
            f"There is no {folder}; recipes come with a clone of the repository, not with the wheel."
        )
    return folder


def find(model: str, mixture: str | None, examples: Path) -> list[Stage]:
    """The stages of a model; ValueError with the names that there are for an unknown one.

    Args:
        mixture: a file of examples/multitask, for a model of examples/captioner alone; None = the usual one.
    """
    others = {name: family for family in STAGES for name in models(family, examples)}
    captioners = _recipes(examples / "captioner")
    if model in captioners:
        return _of_molmo(model, mixture or MIXTURE, examples)
    if model not in others:
        known = ", ".join([*captioners, *others])
        raise ValueError(f"There is no recipe of {model}; those there are: {known or 'none'}.")
    family = others[model]
    if mixture is not None:
        raise ValueError(
            f"--mixture names a file of examples/multitask, and {model} is trained by those of examples/{family};"
            " leave it out."
        )
    return [
        Stage(
            name=stage,
            files=(examples / family / f"{stage}.yaml",),
            debug=examples / "debug" / f"{family}.yaml",
            words=() if model == own_model(family) else _other_model(model, first=place == 0),
        )
        for place, stage in enumerate(STAGES[family])
    ]


def own_model(family: str) -> str:
    """The model that the files of a family name."""
    return {"molmo2": "molmo2_8b", "hemolmo": "hemolmo_7b_d"}[family]


def models(family: str, examples: Path) -> list[str]:
    """The models that the files of a family train: their own first, and others by an override of the preset."""
    if not (examples / family).is_dir():
        return []
    first = own_model(family)
    of_family = [name for name in presets.PRESETS if name.startswith(f"{family}_")]
    return [first, *(name for name in of_family if name != first)]


def _recipes(folder: Path) -> list[str]:
    """The names of a folder's YAML files."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _other_model(model: str, first: bool) -> tuple[str, ...]:
    """Overrides for a preset that is not the files' own; the first stage's weights lie beside theirs."""
    weights = f"{_WEIGHTS}/{model}-siglip2"
    key = f"init_from={weights}" if first else f"data.tokenizer={weights}/tokenizer"
    return (f"preset={model}", key)


def _of_molmo(model: str, mixture: str, examples: Path) -> list[Stage]:
    """Captioner and multitask; ValueError for an unknown mixture."""
    multitask = examples / "multitask"
    mixed = multitask / f"{mixture}.yaml"
    if not mixed.is_file():
        captioners = _recipes(examples / "captioner")
        others = [name for name in _recipes(multitask) if name not in captioners]
        raise ValueError(
            f"There is no mixture {mixed}; those there are: {', '.join(others) or 'none'}."
        )
    own = multitask / f"{model}.yaml"  # rates and steps of the model, over the mixture's
    debug = examples / "debug"
    return [
        Stage(
            name="captioner",
            files=(examples / "captioner" / f"{model}.yaml",),
            debug=debug / "captioner.yaml",
        ),
        Stage(
            name="multitask",
            files=(mixed, own) if own.is_file() else (mixed,),
            debug=debug / "multitask.yaml",
        ),
    ]
