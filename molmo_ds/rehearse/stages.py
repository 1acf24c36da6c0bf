"""The rehearsal itself: made-up pictures, both stages, evaluate, export and ask, by the very commands."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from molmo_ds import settings
from molmo_ds.config import RunConfig
from molmo_ds.data.made_up.write import write_made_up
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.engine.launching.ports import free_port
from molmo_ds.engine.plan import choice
from molmo_ds.rehearse.recipe import Stage

RANKS = 2
PICTURES = 8  # of each made-up data set; a global batch has as many sequences
QUESTIONS = 2  # of each task
TOLD = 12  # last lines of a command that failed
FALLBACK = "ds_configs/zero3.json"
# of the real decoder and tower: what kind they are, not how large
KIND = ("model_type", "attention_bias", "qk_norm", "norm_after", "norm_type", "rms_norm_eps")
TOWER = ("model_type", "hidden_act", "layer_norm_eps")


def rehearse(stages: list[Stage], folder: Path) -> Iterator[tuple[str, float]]:
    """Do every part in `folder`; yields (what was done, seconds). Raises ValueError where a part fails."""
    data = folder / "made_up"
    began = time.monotonic()
    write_made_up(data, PICTURES, 0)
    yield "made-up pictures", time.monotonic() - began
    start = "null"
    for stage in stages:
        began = time.monotonic()
        run = folder / stage.name
        words = [f"out={run}", f"init_from={start}", *overrides(stage)]
        other = other_strategy(stage, data)
        if other:
            words.append(f"strategy={other}")
        files = [str(file) for file in (*stage.files, stage.debug)]
        launcher = ["-m", "deepspeed.launcher.runner", "--num_accelerators", str(RANKS)]
        launcher += ["--master_port", str(free_port()), "--module", "molmo_ds.train"]
        _run(f"train-{stage.name}", [*launcher, *files, *words], folder)
        instead = f" ({other}: {RANKS} processes cannot run the recipe's)" if other else ""
        yield f"train {stage.name}{instead}", time.monotonic() - began
        start = str(run)
    tasks = tasks_of(_debug_config(stages[-1], data))
    export = folder / "export"
    picture = _a_picture(data, folder)
    options = ["--data", str(data), "--limit", str(QUESTIONS), "--save-dir", str(folder / "scores")]
    question = ["--image", str(picture), "--style", "vqa2", "--max-new-tokens", "8", "What is it?"]
    for name, words in (
        ("evaluate", ["evaluate", start, *tasks, *options]),
        ("export", ["convert", "to-hub", start, str(export)]),
        ("ask", ["ask", "--checkpoint", str(export), *question]),
    ):
        began = time.monotonic()
        _run(name, ["-c", "from molmo_ds.cli import main; main()", *words], folder)
        yield name, time.monotonic() - began


def overrides(stage: Stage) -> list[str]:
    """Words that make the rehearsal of a stage like its real run, as far as a tiny model on two CPUs can be."""
    real = stage.load(("out=unused",))
    words = [f"model.text.{key}={_word(getattr(real.model.text, key))}" for key in KIND]
    words += [f"model.vision.{key}={_word(getattr(real.model.vision, key))}" for key in TOWER]
    words.append(f"model.images.resize={real.model.images.resize}")
    if real.model.text.num_experts:
        words += ["model.text.num_experts=8", "model.text.num_experts_per_tok=2"]
    for name, evaluator in real.evaluators.items():
        words.append(f"evaluators.{name}.interval=null")
        words.append(f"evaluators.{name}.examples={QUESTIONS if evaluator.task else PICTURES}")
    return words


def other_strategy(stage: Stage, data: Path) -> str:
    """The strategy of the rehearsal where so few processes cannot run the recipe's; empty where they can."""
    config = _debug_config(stage, data)
    try:
        choice.refuse(config, RANKS)
    except ValueError:
        return FALLBACK
    return ""


def tasks_of(config: RunConfig) -> list[str]:
    """The tasks that a run answers, as the command evaluate names them."""
    return [one.task for one in config.evaluators.values() if one.task]


def _debug_config(stage: Stage, data: Path) -> RunConfig:
    before = os.environ.get("MOLMO_DATA_DIR")
    os.environ["MOLMO_DATA_DIR"] = str(data)  # the recipes' root of data
    try:
        return settings.load([str(file) for file in (*stage.files, stage.debug)], ("out=unused",))
    finally:
        if before is None:
            del os.environ["MOLMO_DATA_DIR"]
        else:
            os.environ["MOLMO_DATA_DIR"] = before


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _run(name: str, arguments: list[str], folder: Path) -> None:
    """A command of this Python, what it says into NAME.log; ValueError with its last lines where it fails."""
    log = folder / f"{name}.log"
    here = Path(sys.executable).parent
    environment = os.environ | {
        "MOLMO_DATA_DIR": str(folder / "made_up"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "PATH": f"{here}:{os.environ.get('PATH', '')}",
    }
    with open(log, "wb") as file:
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, stdout=file, stderr=file
        )
    if done.returncode:
        lines = log.read_text(errors="replace").splitlines()
        said = [line for line in lines if "molmo_ds: " in line or "molmo-ds" in line]
        raise ValueError(
            f"{name} failed: {' / '.join((said or lines)[-TOLD:])} (all it said: {log})"
        )


def _a_picture(data: Path, folder: Path) -> Path:
    picture = folder / "picture.jpg"
    picture.write_bytes(ShardSet(str(data / "text_vqa-train")).read(0)["pixels"][0])
    return picture
