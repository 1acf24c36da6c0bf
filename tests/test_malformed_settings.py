"""Made-up malformed overrides, YAML files, strategy files and hostfiles: a sentence or a run, never a traceback.

MALFORMED=N tries N of each kind (CI 300) and MALFORMED_SEED another draw.
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from molmo_ds import settings
from molmo_ds.config import RunConfig
from molmo_ds.engine import ds_config
from molmo_ds.engine.launching.hosts import read_hosts
from molmo_ds.engine.strategy import read_strategy
from molmo_ds.engine.strategy.refusals import refuse

ROOT = Path(__file__).parents[1]
COUNT = int(os.environ.get("MALFORMED", 300))
SEED = int(os.environ.get("MALFORMED_SEED", 20261128))
VALUES = [
    "", "null", "true", "0", "-1", "3.5", "1e9", "-5e9", ".nan", ".inf", "word", "[1,2]", "[]", "{}", "{a: 1}", "[a,b]",
    "{a: {b: 1}}", "'x", '"', "${x}", "???", "~", "~x/y", "a: b", "- 1", "#", "\t", "\u00e9", "1_000", "0x10", "1:30",
    "2024-01-01", "!!int 3", "&a 1", "*a",
    "|", "[[1]]", "\x00", "a\nb", "99999999999999999999", "1e400", "on", "=", "%", "@", "`",
]  # fmt: skip
BYTES = [
    b"",
    b"\t",
    b"- ",
    b": ",
    b"\n",
    b"[",
    b"{",
    b"null",
    b"-1",
    b"\xff",
    b"\x00",
    b"seed: 1\n",
    b"*x",
    b"&x ",
    b"!!x ",
]
BYTES += [b"=", b" ", b"slots=", b":8", b"#", b"9999999999", b'"']


def overrides(draw: random.Random, file: Path) -> None:
    names = [setting.name.replace("<name>", "a") for setting in settings.settings(RunConfig)]
    names += [
        "model",
        "model.text",
        "optim",
        "data.sources",
        "data.sources.a",
        "model.",
        ".",
        "model..text",
        "model[text]",
    ]
    words = [
        draw.choice(["", "--", "-"])
        + draw.choice(names)
        + draw.choice(["=", "=", "=", ""])
        + draw.choice(VALUES)
        for _ in range(draw.randint(1, 3))
    ]
    settings.load(None, words)


def yaml_files(draw: random.Random, file: Path) -> None:
    file.write_bytes(damaged(draw, (ROOT / "examples/digits/questions.yaml").read_bytes()))
    settings.load(file)


def hostfiles(draw: random.Random, file: Path) -> None:
    file.write_bytes(damaged(draw, b"one slots=8\n# two\nthree\tslots=4\r\n"))
    read_hosts(str(file))


def strategies(draw: random.Random, file: Path) -> None:
    values = json.loads(draw.choice(sorted((ROOT / "ds_configs").glob("*.json"))).read_text())
    for _ in range(draw.randint(1, 3)):
        values = changed(draw, values)
    file.write_text(json.dumps(values))
    strategy = read_strategy(str(file))
    config = RunConfig(out="x")
    refuse(strategy, config, 4)
    ds_config.resolve(strategy, config, 4, on_gpu=True)


def damaged(draw: random.Random, content: bytes) -> bytes:
    """Some bytes gone, some others in between."""
    out = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(out))
        out[place : place + draw.randint(0, 20)] = draw.choice(BYTES)
    return bytes(out)


def changed(draw: random.Random, values: Any) -> Any:
    """The same object with something else in one place."""
    if isinstance(values, dict) and values and draw.random() < 0.7:
        key = draw.choice(list(values))
        return values | {key: changed(draw, values[key])}
    return draw.choice(
        [None, True, 0, -1, 3, 1.5, "cpu", "auto", "", [], [1], {}, {"a": 1}, {"stage": 3}, 2**70]
    )


@pytest.mark.parametrize(
    "read", [overrides, yaml_files, hostfiles, strategies], ids=lambda read: read.__name__
)
def test_a_sentence_or_a_run(read: Callable[[random.Random, Path], None], tmp_path: Path) -> None:
    draw = random.Random(f"{SEED} {read.__name__}")
    refused = 0
    for _ in range(COUNT):
        try:
            read(draw, tmp_path / "file")
        except ValueError as error:  # any other kind of error fails the test
            refused += 1
            said = str(error)
            assert said.strip() and "validation error" not in said and "pydantic" not in said, said
    assert refused > COUNT / 4, "the inputs are hardly malformed"
