"""Whether a run's folder holds this very run, and which of its settings have changed since it was last started."""

import os
from pathlib import Path
from typing import Any

import yaml

from molmo_ds import settings
from molmo_ds.config import RunConfig
from molmo_ds.stores import events
from molmo_ds.stores.run_folder import RunFolder

RUN_FILES = (
    "config.yaml",
    "checkpoints",
    "log.jsonl",
    "tensorboard",
    "profile",
    "DONE",
    events.NAME,
)
# with another of these it is another run; the stream tells if the data changed
IDENTITY = ("model", "lora", "optim.name", "global_batch", "seed", "init_from")
# what says where and until when, and changes no number
FREE = ("out", "scratch", "overwrite", "dry_run", "stop_after", "time_limit_seconds")


def check_folder(config: RunConfig, folder: RunFolder) -> None:
    """Refuse an `out` that holds something this run must not touch (ValueError)."""
    out = folder.place
    if not holds_a_run(folder):
        return
    if not (folder.local / "config.yaml").exists():
        raise ValueError(f"{out} holds files of a run but no config.yaml; choose another out.")
    difference = difference_to(folder.local / "config.yaml", config)
    if difference and not config.overwrite:
        raise ValueError(
            f"{out} holds another run ({difference}); choose another out, or set overwrite=true to delete that run."
        )
    if difference and not config.dry_run:
        folder.delete(RUN_FILES)


def holds_a_run(folder: RunFolder) -> bool:
    """Whether `out` has a log or a checkpoint, whole or not."""
    checkpoints = (folder.place / "checkpoints").glob("step-*")
    return (folder.local / "log.jsonl").exists() or any(checkpoints)


def told(config: RunConfig, folder: RunFolder) -> list[str]:
    """A sentence about the settings with which this run goes on and was not started, if there are any.

    Args:
        config: of a run that `check_folder` let pass.
    """
    if not holds_a_run(folder):
        return []
    changed = [
        f"{key} {there} -> {here}"
        for key, (there, here) in changes(folder.local / "config.yaml", config).items()
        if key not in FREE
    ]
    if not changed:
        return []
    return [
        f"This run continues with other settings than it was last started with: {', '.join(changed)}."
    ]


def earlier(config: RunConfig, folder: Path) -> dict[str, Any] | None:
    """The settings that the run in `folder` was last started with, if `config` continues it."""
    saved = folder / "config.yaml"
    if not config.resume or not saved.is_file():
        return None
    return yaml.safe_load(saved.read_text())


def claim_folder(config: RunConfig, out: Path, finished: bool) -> None:
    """Make `out` and write the resolved configuration into it, after validation."""
    out.mkdir(parents=True, exist_ok=True)
    if not finished:
        (out / "DONE").unlink(missing_ok=True)
    settings.save(config, out / "config.yaml.new")
    os.replace(out / "config.yaml.new", out / "config.yaml")


def difference_to(saved: Path, config: RunConfig) -> str:
    """A difference to the run whose config.yaml is `saved`; empty where this run continues it."""
    if not config.resume:
        return "resume=false"
    try:
        changed = changes(saved, config)
    except ValueError:
        return "its config.yaml cannot be read"
    for key, (there, here) in changed.items():
        if key in IDENTITY or key.startswith(tuple(f"{name}." for name in IDENTITY)):
            return f"its {key} is {there}, not {here}"
    return ""


def changes(saved: Path, config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """(value in the file `saved`, value now) of every setting that differs, by its dotted name, sorted.

    Raises ValueError if the file is not a configuration.
    """
    try:
        there = flat(yaml.safe_load(saved.read_text()))
    except (yaml.YAMLError, AttributeError):
        raise ValueError(f"{saved} is not a configuration.") from None
    here = flat(settings.to_dict(config))
    there = flat(settings.to_dict(RunConfig())) | there  # a setting may be younger than that run
    return {
        key: (there.get(key), here.get(key))
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    }


def flat(values: dict, prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    out = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out
