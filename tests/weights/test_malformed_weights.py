"""Checkpoints and folders of weights damaged by the hundred: the right numbers, or one sentence; nothing in silence.

MOLMO_FUZZ=1000 pytest tests/weights/test_malformed_weights.py tries more; MOLMO_FUZZ_SEED=N tries others.
"""

import json
import os
import random
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from stored_models import model, run_config, tensor_parts, write_checkpoint

from molmo_ds.data.tokens import train_tokenizer
from molmo_ds.hub import export
from molmo_ds.infer.load import load as load_answerer
from molmo_ds.testing.random_weights import random_state, weights_folder
from molmo_ds.weights import checkpoint, checksums

EXAMPLES = int(os.environ.get("MOLMO_FUZZ", "60"))
SEED = int(os.environ.get("MOLMO_FUZZ_SEED", "0"))
VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2.5,
    1e300,
    10**400,
    "",
    "x",
    "F32",
    "I32",
    [],
    [1],
    {},
    {"a": 1},
    [[1, 2]],
)
TEXT = "What is this? A grey square."
MODEL = model()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One model as a checkpoint of two ranks, a folder of weights in several files, and an exported folder."""
    root = tmp_path_factory.mktemp("whole")
    train_tokenizer([TEXT], 288, root / "words")
    state = random_state(MODEL)
    weights_folder(root / "weights", MODEL, state, root / "words")
    export.to_hub(root / "weights", root / "exported", shard_bytes=60_000)
    write_checkpoint(root / "run", run_config(MODEL, root / "words"), state, tensor_parts)
    answerer = load_answerer(root / "weights", device="cpu")
    return {"root": root, "state": state, "ids": answerer.builder.tokenizer.encode(TEXT)}


def damage(folder: Path, draw: random.Random) -> str:
    """Hurt one file in one way; what was done."""
    file = draw.choice(
        sorted(
            path for path in folder.rglob("*") if path.is_file() and path.suffix in checksums.READ
        )
    )
    data = bytearray(file.read_bytes())
    kinds = ["flip", "cut", "empty", "missing", "other", "longer", "swapped"]
    kinds += ["value"] * 6 if file.suffix in (".json", ".yaml") else ["header"] * 6
    kind = draw.choice(kinds)
    if kind == "flip":
        for _ in range(draw.choice((1, 1, 5))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[draw.randrange(len(data)) :]
    elif kind == "empty":
        data.clear()
    elif kind == "other":
        data = bytearray(
            draw.choice(
                (b"null", b"[]", b"{}", b"-", b"\xff\xfe", b"PK\3\4", b"[" * 5000, b"a: [b")
            )
        )
    elif kind == "longer":
        data += draw.choice((b"\0", b"\n", b"{}", bytes(5000)))
    elif kind == "swapped":
        data = bytearray(
            draw.choice(sorted(p for p in folder.rglob("*") if p.is_file())).read_bytes()
        )
    elif kind == "value":
        values = yaml.safe_load(bytes(data)) if file.suffix == ".yaml" else json.loads(data)
        data = bytearray(
            (yaml.safe_dump if file.suffix == ".yaml" else json.dumps)(
                changed(values, draw)
            ).encode()
        )
    elif kind == "header":
        data = with_header(data, lambda entries: changed(entries, draw))
    if kind == "missing":
        file.unlink()
    else:
        file.write_bytes(data)
    return f"{kind} of {file.relative_to(folder)}"


def changed(values: Any, draw: random.Random) -> Any:
    """JSON with one value replaced, dropped, renamed or doubled, at any depth."""
    if isinstance(values, dict | list) and values and draw.random() < 0.85:
        places = list(values) if isinstance(values, dict) else list(range(len(values)))
        place = draw.choice(places)
        deed = draw.randrange(8)
        if deed == 0:
            values.pop(place)
        elif deed == 1 and isinstance(values, dict):
            values[draw.choice((f"{place}x", *places))] = values.pop(place)
        elif deed == 1:
            values.append(values[place])
        else:
            values[place] = changed(values[place], draw)
        return values
    if type(values) is int and draw.random() < 0.5:
        return values + draw.choice((-1, 1, 4, 1 << 40))
    return draw.choice(VALUES)


def with_header(data: bytearray, change: Callable[[dict], Any]) -> bytearray:
    """A safetensors file with a changed header of the same length, where it has room."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
    header = header.ljust(length)
    return bytearray(struct.pack("<Q", len(header)) + header + data[8 + length :])


def with_sums(folder: Path) -> None:
    """Make the noted checksums those of the files as they are: a lie that no checksum finds."""
    for file in folder.rglob("manifest.json"):
        try:
            manifest = json.loads(file.read_text())
            noted = {name: checksums.facts_of(file.parent / name) for name in manifest["files"]}
        except (ValueError, OSError, TypeError, KeyError):
            continue
        file.write_text(json.dumps(manifest | {"files": noted}))
    (folder / checksums.NAME).unlink(missing_ok=True)


class Unlike(Exception):
    """What was loaded without a word is not what was saved."""


def result(folder: Path, whole: dict[str, Any], state_too: bool) -> str:
    """The sentence, or "right"; anything else is a failure of the test."""
    try:
        answerer = load_answerer(folder, device="cpu")
        if state_too:
            found = checkpoint.open_checkpoint(checkpoint.find(folder))
            moments = {name: found.whole(name, "exp_avg") for name in found.pieces}
    except ValueError as error:
        assert not isinstance(error, UnicodeError | json.JSONDecodeError), repr(error)
        sentence = str(error)
        assert sentence.strip().endswith(".") and len(sentence) < 3000, repr(sentence)
        return "said"
    for name, tensor in answerer.model.named_parameters():
        if not torch.equal(tensor, whole["state"][name]):
            raise Unlike(f"{name} has other numbers")
        if state_too and not torch.equal(moments[name], whole["state"][name] / 2):
            raise Unlike(f"{name} has another moment")
    if answerer.model.config != MODEL or answerer.builder.tokenizer.encode(TEXT) != whole["ids"]:
        raise Unlike("another architecture, or other words")
    return "right"


def tried(whole: dict[str, Any], kind: str, folder: Path, lie: bool) -> Counter:
    """How many damaged folders of a kind were refused in a sentence, were right, or lied with sums that fit."""
    seen = Counter()
    faults = []
    for number in range(EXAMPLES // 6):
        draw = random.Random(f"{SEED} {kind} {number} {lie}")
        copy = shutil.copytree(whole["root"] / kind, folder / str(number))
        done = damage(copy, draw)
        if lie:
            with_sums(copy)
        try:
            seen[result(copy, whole, kind == "run")] += 1
        except Unlike as error:
            seen["other"] += 1
            faults += [] if lie else [f"{number}: {done}: {error}"]
        except BaseException as error:
            faults.append(f"{number}: {done}: {error!r}")
        shutil.rmtree(copy)
    assert not faults, f"{len(faults)} of {EXAMPLES // 6}:\n" + "\n".join(faults)
    return seen


@pytest.mark.parametrize("kind", ["run", "weights", "exported"])
def test_damaged(whole: dict[str, Any], tmp_path: Path, kind: str) -> None:
    """Whatever happens to one file, it is found, or does not matter."""
    seen = tried(whole, kind, tmp_path, lie=False)
    assert seen["said"] > EXAMPLES // 12, seen


@pytest.mark.parametrize("kind", ["run", "weights", "exported"])
def test_lies(whole: dict[str, Any], tmp_path: Path, kind: str) -> None:
    """The same with checksums that fit: what contradicts itself is found, and there is no traceback."""
    seen = tried(whole, kind, tmp_path, lie=True)
    assert seen["said"] > EXAMPLES // 24, seen
