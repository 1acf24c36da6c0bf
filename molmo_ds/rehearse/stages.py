"""The rehearsal itself: made-up data, every stage, evaluate, export and ask, by the very commands."""

import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from molmo_ds import settings
from molmo_ds.architecture import MolmoConfig
from molmo_ds.config import RunConfig
from molmo_ds.data.made_up.film import make_film
from molmo_ds.data.made_up.write import write_made_up
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.engine.launching.ports import free_port
from molmo_ds.engine.plan import choice
from molmo_ds.rehearse.reading import read_all
from molmo_ds.rehearse.recipe import Stage

RANKS = 2
PICTURES = 8  # of each made-up data set; a global batch has as many sequences
QUESTIONS = 2  # of each task
TOLD = 12  # last lines of a command that failed
FALLBACK = "ds_configs/zero3.json"
# of the real decoder and tower: what kind they are, not how large
KIND = (
    *("model_type", "attention_bias", "qk_norm", "qk_norm_per_head", "norm_after", "norm_type"),
    *("rms_norm_eps", "image_attention", "tie_word_embeddings"),
)
TOWER = ("model_type", "hidden_act", "layer_norm_eps")
# of families whose small model cuts pictures into crops as its large one does; all but sizes and margins
CONNECTOR = ("pooling", "pooling_size", "projector", "padding_embed", "pooling_mask", "patch_row")
PICTURE = ("crop_mode", "pad_value", "use_col_tokens", "legacy_image_mask")
VIDEO = ("max_fps", "frame_sample_mode", "pooling_size", "per_frame_special_token")
SIZES = ("picks", "scored_layers", "first_pass_layers")  # of what HeMolmo chooses and reads
HEADS = 4  # of the small decoders, 2 for Molmo
HEAD = 48  # wider than a head's share of the small decoders
SCALED_LENGTH = 512  # up to which positions are not scaled, where the model scales them


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What is done with the weights of a family's last stage."""

    asked: tuple[str, ...] = ()  # tasks besides those of the recipe's evaluators
    no_export: str = ""  # why there is none
    style: str  # of the question about a picture
    video: bool = False  # one is asked about too


ENDINGS = {
    "molmo": Ending(style="vqa2"),
    "molmo2": Ending(
        asked=(
            *("chart_qa:validation", "muir_bench:test", "nextqa_mc:test", "video_mme_w_subtitle"),
            *("molmo2_video_count_eval:val", "molmo2_video_point_eval:val"),
            "molmo2_video_track_eval_1fps:test",
        ),
        style="user_qa",
        video=True,
    ),
    "hemolmo": Ending(no_export="HeMolmo has no released format", style="chart_qa"),
}


def rehearse(stages: list[Stage], folder: Path) -> Iterator[tuple[str, float]]:
    """Do every part in `folder`; yields (what was done, seconds). Raises ValueError where a part fails."""
    data = folder / "made_up"
    family = stages[0].load(("out=unused",)).model.family
    began = time.monotonic()
    write_made_up(data, PICTURES, 0, family)
    yield "made-up data", time.monotonic() - began
    began = time.monotonic()
    sets, samples = read_all({stage.name: debug_config(stage, data) for stage in stages})
    yield f"read {samples} samples of {sets} sets", time.monotonic() - began
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
    for name, words in endings(family, debug_config(stages[-1], data), data, folder, start):
        began = time.monotonic()
        _run(name, ["-c", "from molmo_ds.cli import main; main()", *words], folder)
        yield name, time.monotonic() - began
    if ENDINGS[family].no_export:
        yield f"no export: {ENDINGS[family].no_export}", 0.0


def endings(
    family: str, last: RunConfig, data: Path, folder: Path, start: str
) -> Iterator[tuple[str, list[str]]]:
    """(name, words) of the commands that answer: evaluate, export where the family has one, ask."""
    ending = ENDINGS[family]
    options = ["--data", str(data), "--limit", str(QUESTIONS), "--save-dir", str(folder / "scores")]
    yield "evaluate", ["evaluate", start, *tasks_of(last), *ending.asked, *options]
    if not ending.no_export:
        export = str(folder / "export")
        yield "export", ["convert", "to-hub", start, export]
        start = export
    few = ["--checkpoint", start, "--max-new-tokens", "8"]
    picture = _a_picture(data, folder)
    yield "ask", ["ask", *few, "--image", str(picture), "--style", ending.style, "What is it?"]
    if ending.video:
        video = folder / "video.mp4"
        video.write_bytes(make_film(0, 0)[1])
        style = "video_short_answer"
        yield "ask-video", ["ask", *few, "--video", str(video), "--style", style, "What moves?"]


@functools.lru_cache
def overrides(stage: Stage) -> tuple[str, ...]:
    """Words that make the rehearsal of a stage like its real run, as far as a tiny model on two CPUs can be."""
    real = stage.load(("out=unused",))
    words = [f"model.text.{key}={_word(getattr(real.model.text, key))}" for key in KIND]
    words += [f"model.vision.{key}={_word(getattr(real.model.vision, key))}" for key in TOWER]
    words.append(f"model.images.resize={real.model.images.resize}")
    if real.model.text.num_experts:
        words += ["model.text.num_experts=8", "model.text.num_experts_per_tok=2"]
    if real.model.family != "molmo":
        words += _of_later_families(real.model)
    for name, evaluator in real.evaluators.items():
        words.append(f"evaluators.{name}.interval=null")
        words.append(f"evaluators.{name}.examples={QUESTIONS if evaluator.task else PICTURES}")
    return tuple(words)


def _of_later_families(real: MolmoConfig) -> list[str]:
    """Heads, positions, windows, crops, frames and selection as in the real model."""
    text = real.text
    share = text.hidden_size // text.num_attention_heads
    wide = text.head_width != share
    grouped = text.num_key_value_heads != text.num_attention_heads
    words = [f"model.text.num_attention_heads={HEADS}"]
    words.append(f"model.text.num_key_value_heads={HEADS // 2 if grouped else HEADS}")
    words.append(f"model.text.head_dim={HEAD if wide else 'null'}")
    if text.rope_scaling:
        scaling = dict(text.rope_scaling)
        if "original_max_position_embeddings" in scaling:
            scaling["original_max_position_embeddings"] = SCALED_LENGTH
        words.append(f"model.text.rope_scaling={_word(scaling)}")
        # the last of the two layers alone, where it is some of them
        words.append(
            f"model.text.rope_scaling_layers={'[1]' if text.rope_scaling_layers else 'null'}"
        )
    words += [f"model.connector.{key}={_word(getattr(real.connector, key))}" for key in CONNECTOR]
    words += [f"model.images.{key}={_word(getattr(real.images, key))}" for key in PICTURE]
    words += [f"model.video.{key}={_word(getattr(real.video, key))}" for key in VIDEO]
    if real.selection is not None:
        chosen = {k: v for k, v in vars(real.selection).items() if k not in SIZES}
        words += [f"model.selection.{key}={_word(value)}" for key, value in chosen.items()]
    return words


def other_strategy(stage: Stage, data: Path) -> str:
    """The strategy of the rehearsal where so few processes cannot run the recipe's; empty where they can."""
    config = debug_config(stage, data)
    try:
        choice.refuse(config, RANKS)
    except ValueError:
        return FALLBACK
    return ""


def tasks_of(config: RunConfig) -> list[str]:
    """The tasks that a run answers, as the command evaluate names them."""
    return [one.task for one in config.evaluators.values() if one.task]


def debug_config(stage: Stage, data: Path) -> RunConfig:
    """The settings of a stage's rehearsal."""
    before = os.environ.get("MOLMO_DATA_DIR")
    os.environ["MOLMO_DATA_DIR"] = str(data)  # the recipes' root of data
    try:
        files = [str(file) for file in (*stage.files, stage.debug)]
        return settings.load(files, ["out=unused", "init_from=null", *overrides(stage)])
    finally:
        if before is None:
            del os.environ["MOLMO_DATA_DIR"]
        else:
            os.environ["MOLMO_DATA_DIR"] = before


def _word(value: object) -> str:
    """A value as a word of the command line."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_word(one)}" for key, one in value.items()) + "}"
    return str(value)


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
    picture.write_bytes(ShardSet(str(data / "pixmo_cap-train")).read(0)["pixels"][0])
    return picture
