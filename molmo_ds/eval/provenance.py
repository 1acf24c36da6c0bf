"""What decides the answers of an evaluation, in one small object: two runs are comparable where theirs are equal."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from molmo_ds import files
from molmo_ds.config import PromptConfig
from molmo_ds.eval.task import Task
from molmo_ds.files import Place, Remote
from molmo_ds.weights.tensor_files import header

BLOCKS = 64  # of each weight file that are hashed
BLOCK = 1 << 16  # bytes
KINDS = ("*.safetensors", "*.bin", "*.pt")  # files of weights
PACKAGE = Path(__file__).parents[1]
# of data: what makes a prompt
PROMPTS = (
    *("sample/prompts.py", "sample/question.py", "sample/styles.py", "sample/pointed.py"),
    *("sample/point_text.py", "sample/points.py", "wording/no_pointing.py", "sample/turns.py"),
    *("sample/annotation.py", "sample/conversation.py"),
    *("wording/pictures.py", "wording/videos.py", "wording/actions.py", "wording/options.py"),
)
# whose code decides answers and figures
FOLDERS = ("data", "model", "ops", "weights", "infer", "eval")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """JSON values only, so that it is equal to itself when it is read back."""

    task: str
    split: str
    checkpoint: str  # hash of the weights, or a server's address and model
    prompt: str  # version of the prompts
    crops: int | None  # None = what the server does
    frames: int | None  # the most of a video; None = as the model was trained, or the record says
    precision: str
    limit: int | None
    shuffle_seed: int | None
    data: str  # fingerprint of the shards
    new_tokens: int
    code: str  # version of the program

    def values(self) -> dict[str, Any]:
        """As a dictionary."""
        return dataclasses.asdict(self)


def checkpoint_hash(folder: Place) -> str:
    """A hash of the weights in a folder: of a run's checkpoint its manifest, which holds all checksums.

    Of other folders 64 blocks of each weight file at equal distances, and the begin of every tensor, since training
    may have changed a few alone; so 150 GB take seconds.
    """
    manifest = folder / "manifest.json"
    if manifest.is_file():
        return hashlib.sha256(manifest.read_bytes()).hexdigest()[:16]
    digest = hashlib.sha256()
    for file in sorted(one for kind in KINDS for one in folder.glob(kind)):
        size = files.size(str(file))
        digest.update(f"{file.name} {size}\n".encode())
        begins = {number * max(0, size - BLOCK) // (BLOCKS - 1) for number in range(BLOCKS)}
        if file.suffix == ".safetensors":
            begins |= {place.offset for place in header(file).values() if place.bytes}
        with ThreadPoolExecutor(16 if isinstance(file, Remote) else 1) as pool:
            for block in pool.map(functools.partial(_block, str(file), size), sorted(begins)):
                digest.update(block)
    for name in ("config.yaml", "config.json"):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def _block(file: str, size: int, begin: int) -> bytes:
    return files.read_range(file, begin, min(begin + BLOCK, size))


def prompt_version(config: PromptConfig, tokenizer: str = "") -> str:
    """A hash of what makes a question's text; `tokenizer` is its digest, where it is known."""
    digest = hashlib.sha256(
        json.dumps([dataclasses.asdict(config), tokenizer], sort_keys=True).encode()
    )
    for name in PROMPTS:
        digest.update((PACKAGE / "data" / name).read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def code_version() -> str:
    """A hash of the package's files that decide answers and figures."""
    digest = hashlib.sha256()
    for folder in FOLDERS:
        for file in sorted((PACKAGE / folder).rglob("*.py")):
            digest.update(str(file.relative_to(PACKAGE)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def step_of(folder: Place) -> int | None:
    """The training step in a checkpoint's path, step-00001000 or the reference's step1000-unsharded, else None."""
    for part in reversed(str(folder).split("/")):
        if found := re.fullmatch(r"step-?(\d+)(?:-unsharded)?", part):
            return int(found[1])
    return None


def results_base(folder: Place) -> Place:
    """Where the results of a checkpoint lie: inside the model's folder, of a step's folder in the run's."""
    if step_of(Path(folder.name)) is None:
        return folder
    return folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent


def results_name(
    task: Task, split: str, step: int | None, eval_name: str = "", kind: str = "predictions"
) -> str:
    """KIND[-ck<step>]-<dataset>-<split>[-<eval_name>], as allenai/molmo names the folder (olmo/eval)."""
    parts = [kind, f"ck{step}" if step is not None else "", task.name, split, eval_name]
    return "-".join(part for part in parts if part)
