"""What a run needs to be there, and the command that fetches what is not."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from molmo_ds import files, presets
from molmo_ds.config import RunConfig
from molmo_ds.data import sources
from molmo_ds.data.made_up.write import MADE_UP
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.tokens import Tokenizer
from molmo_ds.engine.plan.choice import RESERVED, Room, choose
from molmo_ds.engine.plan.plan_inference import CARD
from molmo_ds.engine.plan.plan_memory import plan
from molmo_ds.engine.strategy import AUTO, read_strategy
from molmo_ds.engine.strategy.refusals import refuse
from molmo_ds.eval.listing import shards_of
from molmo_ds.eval.sets import resolve
from molmo_ds.weights import checkpoint
from molmo_ds.weights.tensor_files import INDEX

HELD_OUT = 2048  # pictures of a PixMo set that the reference holds out
LANGUAGE_MODELS = {  # preset -> where its language model is published
    "molmo_7b_d": "Qwen/Qwen2-7B",
    "molmo_7b_o": "allenai/OLMo-7B-1024-preview",
    "molmo_72b": "Qwen/Qwen2-72B",
    "molmoe_1b": "allenai/OLMoE-1B-7B-0924",
    "olmo2_7b": "allenai/OLMo-2-1124-7B",
    "olmo2_13b": "allenai/OLMo-2-1124-13B",
    "olmo2_32b": "allenai/OLMo-2-0325-32B",
    "qwen2.5_1.5b": "Qwen/Qwen2.5-1.5B",
    "qwen2.5_3b": "Qwen/Qwen2.5-3B",
    "qwen2.5_7b": "Qwen/Qwen2.5-7B",
    "qwen2.5_14b": "Qwen/Qwen2.5-14B",
    "molmo2_4b": "Qwen/Qwen3-4B-Instruct-2507",
    "molmo2_8b": "Qwen/Qwen3-8B",
    "molmo2_o_7b": "allenai/Olmo-3-7B-Instruct",
    "hemolmo_7b_d": "Qwen/Qwen2-7B",
}
TOWERS = {
    "clip": "openai=openai/clip-vit-large-patch14-336",
    "siglip": "siglip=google/siglip-so400m-patch14-384",
    "siglip2": "siglip2=google/siglip2-so400m-patch14-384",
    "dinov2": "dinov2=facebook/dinov2-large",
    "metaclip": "metaclip=facebook/metaclip-l14-fullcc2.5b",
}


@dataclass(frozen=True)
class Need:
    """One thing that a run reads or uses; `fetch` is what to do where it is not there."""

    what: str
    there: bool
    found: str  # what is there, or what is wrong
    fetch: str = ""


def data_folders(config: RunConfig) -> list[str]:
    """The folders (or globs, or URLs) of shards that the sources and the evaluators of a run read, each once."""
    paths = [source.path for source in config.data.sources.values()]
    for evaluator in config.evaluators.values():
        paths += [evaluator.path, *(one.path for one in evaluator.sources.values())]
        if evaluator.task:
            [(task, split)] = resolve(evaluator.task)
            paths.append(str(shards_of(task, split, Path(evaluator.data_folder))))
    return list(dict.fromkeys(path for path in paths if path))


def data_need(path: str) -> Need:
    """The shards of one folder, as training opens them; made-up ones do not count."""
    name = Path(path).name
    try:
        shards = ShardSet(path)
        shards.check()
    except (ValueError, OSError) as error:
        return Need(name, False, str(error).split(";")[0].rstrip("."))
    note = Path(path) / "report.json"
    report = json.loads(note.read_text()) if note.is_file() else {}
    if report.get(MADE_UP):
        return Need(name, False, f"{path} is made up, for rehearsals")
    source = sources.ALL.get(name.rpartition("-")[0])
    if report and source and source.changed and "source" not in report:
        return Need(name, False, f"{path} is of an earlier version; {source.changed.rstrip('.')}")
    return Need(name, True, f"{len(shards):,} samples in {path}")


def downloads(missing: list[str], wanted: list[str]) -> list[str]:
    """The commands that write the folders `missing` of those that are `wanted`, sets of one command together.

    A validation split that is not published is held out of the training set when that is written.
    """
    held_out = set()
    for path in wanted:
        name, _, split = Path(path).name.rpartition("-")
        if split == "validation" and name in sources.ALL and split not in sources.get(name).splits:
            held_out.add(str(Path(path).with_name(name)))
    # what stands before the names of sets and after them; paths and sentences may hold braces
    commands: dict[tuple[str, str], list[str]] = {}
    explained = set()
    for path in dict.fromkeys(missing):
        folder = Path(path)
        name, _, split = folder.name.rpartition("-")
        if name not in sources.ALL:
            own = ("python tools/make_shards.py ...", "    # your own data: docs/guides/data.md")
            commands.setdefault(own, []).append(path)
            continue
        options = f" --out {folder.parent}"
        if str(folder.with_name(name)) in held_out:
            options += f" --hold-out {HELD_OUT}"
        elif split != "train":
            options += f" --split {split}"
        by_hand = sources.get(name).by_hand
        if by_hand:
            by_hand = f"its folder of {name}, as above" if name in explained else by_hand
            options += f" --from DIR    # {by_hand}"
            explained.add(name)
        commands.setdefault(("python tools/download.py", options), []).append(name)
    return [
        f"{before} {' '.join(dict.fromkeys(names))}{after}"
        for (before, after), names in commands.items()
    ]


def tokenizer_need(config: RunConfig, fetch: str) -> Need:
    """The tokenizer, read as training reads it."""
    folder = config.data.tokenizer
    try:
        tokenizer = Tokenizer(folder, config.model.text.vocab_size)
    except ValueError as error:
        return Need("tokenizer", False, str(error).rstrip("."), fetch)
    return Need("tokenizer", True, f"{tokenizer.words:,} words in {folder}")


def weights_need(config: RunConfig, fetch: str) -> Need:
    """The weights that the run starts from: a weights folder, or a run with a whole checkpoint."""
    path = config.init_from
    if path is None:
        return Need("weights", True, "random: init_from is null")
    if files.is_remote(path):
        return Need("weights", True, f"{path} is remote and was not looked at")
    try:
        whole = (Path(path) / INDEX).is_file() or checkpoint.find(path)
    except (ValueError, OSError) as error:
        return Need("weights", False, str(error).rstrip("."), fetch)
    return Need("weights", bool(whole), f"in {path}", fetch)


def backbones(preset: str, out: str) -> str:
    """The command that makes the first weights of a first stage, tokenizer included."""
    name, _, tower = preset.partition("/")
    text = LANGUAGE_MODELS.get(name, "FOLDER")
    usual = next(
        tower for tower, shape in presets.TOWERS.items() if shape == presets.get(name).vision
    )
    vision = TOWERS[tower or usual]
    return f"python tools/convert.py backbones --llm {name}={text} --vision {vision} {out}"


def disk_need(out: str, checkpoint_bytes: int, kept: int) -> Need:
    """Room for the checkpoints that are kept and the one that is being written."""
    wanted = (kept + 1) * checkpoint_bytes
    place = Path(out).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:,.0f} GB free at {place}, {wanted / 1e9:,.1f} GB wanted for {kept} + 1 checkpoints"
    fewer = ", or keep_checkpoints=1" if kept > 1 else ""
    return Need("disk", free >= wanted, found, f"choose out=... on a larger disk{fewer}")


def memory_need(config: RunConfig, gpus: int, gpu_bytes: float) -> Need:
    """The plan of a GPU's memory, by the strategy of the recipe on that number of GPUs."""
    advice = (
        "give more --gpus, or change micro_batch, activation_checkpointing or strategy"
        " (docs/guides/when-it-does-not-fit.md)"
    )
    if config.strategy == AUTO:
        room = Room(device=gpu_bytes - RESERVED, host=CARD.host / CARD.per_host)
        try:
            return Need("memory", True, choose(config, gpus, room).sentence.rstrip("."))
        except ValueError as error:
            return Need("memory", False, str(error).rstrip("."), advice)
    strategy = read_strategy(config.strategy)
    try:
        refuse(strategy, config, gpus)
    except ValueError as error:
        return Need("memory", False, str(error).rstrip("."), advice)
    peak = max(stage.peak for stage in plan(config, strategy, gpus))
    name = os.path.basename(config.strategy)
    found = f"{peak / 1e9:.1f} GB planned of {gpu_bytes / 1e9:.0f} GB by {name} on {gpus} GPUs"
    return Need("memory", peak + RESERVED <= gpu_bytes, found, advice)
