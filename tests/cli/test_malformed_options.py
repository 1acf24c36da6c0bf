"""Malformed command lines of every command: an answer, exit code 2 with its usage, or a sentence; never a traceback.

pytest tests/cli/test_malformed_options.py --examples 500 tries 500 of each command; MOLMO_FUZZ_SEED=N tries others.
Nothing is started, nobody is called: what would do that counts as reached.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stored_files import NAMES, small_world

from molmo_ds import cli, train
from molmo_ds.cli import launch
from molmo_ds.engine.launching.supervise import Supervisor

SEED = int(os.environ.get("MOLMO_FUZZ_SEED", "0"))
DS = str(Path(__file__).parents[2] / "ds_configs")
SECONDS = 60  # of one command line
ODD = (
    "", " ", "-", "--", "---", "=", "-1", "0", "00", "1e400", "nan", "inf", "-inf", "1_0", "0x1f", "9" * 30,
    "9" * 5000, "3.5", "true", "null", "None", "[]", "{}", "a b", "a=b", "=b", "a=", "--a=b", "x" * 5000,
    "\u00e9", "\u0663", "\u202e", "\U0001f600", "\udcff", "a\nb", "a\tb", "\x01", "'", '"', "*", "[a", "{a",
    "${x}", "$(x)", "~", "..", "~nobody", "/dev/null", "/proc/1/mem", "http://", "http://[", "s3://",
    "file:///", "localhost", ":", ":8", "a:b", "a:-1", "a:0", "@x", "%s", "-h2", "--help2",
    "--no-such-option", "--no-such-option=1", "seed=1", "seed", "model.text.x=1", "--local_rank=0", "1e-300",
    "1e18", "2", "1.0",
)  # fmt: skip


class Reached(BaseException):
    """The command was about to start something or to call somebody."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_world(tmp_path_factory.mktemp("world"))


def lines(world: dict[str, Path], out: Path) -> dict[str, list[list[str]]]:
    """Sound command lines of each command, the output below `out`."""
    at = {name: str(path) for name, path in world.items()}
    to = str(out / "new")
    asked = ["What?", "--checkpoint", at["weights"], "--image", at["picture"], "--device", "cpu"]
    shards = ["--workers", "1", "--style", "caption"]
    kept = ["--seed", "1", "--samples-per-shard", "5", "--max-bad-share", "0.5", "--name", "n"]
    hosts = [
        "--hosts",
        "localhost:2",
        "--stall",
        "5",
        "--start",
        "9",
        "--probe",
        "2",
        "--tries",
        "3",
    ]
    run = [at["config"], f"out={to}", "global_batch=4", "seed=3", f"strategy={DS}/zero1.json"]
    return {
        "launch": [[*hosts, "--backoff", "2", "--export", "PATH", *run], ["--hosts", at["hosts"], *run]],
        "plan": [
            ["tiny", DS + "/zero3.json", "4", "micro_batch=1"],
            ["tiny", "auto", "2x4", "card.memory=80e9", "card.host=1e12"],
            ["molmo_7b_d", DS + "/infer/tp8.json", "8"],
        ],
        "ask": [
            [*asked, "--max-new-tokens", "2", "--temperature", "0.5", "--top-k", "3", "--seed", "2"],
            [*asked, "--beams", "2", "--max-new-tokens", "2", "--stop", "x", "--style", "vqa2"],
            ["What?", "--server", "http://127.0.0.1:9", "--image", at["picture"], "--top-p", "0.5"],
            ["What?", "--checkpoint", at["weights"], "--video", at["picture"], "--clip", "0", "1"],
        ],
        "serve": [
            [at["weights"], "--device", "cpu", "--port", "0", "--host", "127.0.0.1", "--queue", "4"],
            [at["weights"], "--strategy", DS + "/infer/tp8.json", "--hosts", "localhost:2"],
            [at["weights"], "--max-pictures", "2", "--timeout", "5", "--max-megabytes", "3"],
        ],
        "judge": [
            [at["folder"], "--judge-model", "j", "--judge-url", "http://127.0.0.1:9/v1", "--parallel", "2"]
        ],
        "compare": [[at["folder"], at["shards"], "--metric", "m", "--changed", "3"]],
        "make_shards": [
            ["folder", at["folder"], to, *shards, *kept[2:]],
            ["jsonl", at["rows"], to, *shards, "--map", "text=caption", "--root", at["folder"], *kept[2:]],
            ["csv", at["table"], to, *shards, "--map", "text=caption", "--image", "image", "--root", at["folder"]],
            ["tars", at["tar"], to, *shards],
            ["made-up", to, "--pictures", "1", "--seed", "1", "--family", "molmo"],
        ],
        "inspect_shards": [[at["shards"], "--samples", "2", "--no-decode"]],
        "show_shards": [
            [at["shards"], f"{to}.html", "--tokenizer", at["words"], "--sequences", "2", "preset=tiny"],
            [at["shards"], f"{to}.html", "--documents", "1", "preset=tiny"],
            [at["shards"], f"{to}.html", "--config", at["config"]],
        ],
        "show": [[at["run"], "--out", f"{to}.html", "--samples", "1", "--examples", "1", "--port", "0"]],
        "download": [
            ["pixmo_cap", "--out", to, "--limit", "2", "--workers", "2", "--timeout", "1", "--split", "train"],
            ["--list"],
        ],
        "convert": [
            ["to-hub", at["weights"], to, "--dtype", "bf16", "--shard-gb", "0.1"],
            ["from-hub", at["exported"], to, "text.rope_theta=1e4"],
            ["from-peft", at["weights"], to, "--base", at["weights"]],
        ],
        "rehearse": [["molmo_7b_d", "--out", to, "--gpus", "4", "--mfu", "0.3", "--gpu-memory", "80"]],
        "evaluate": [
            [at["weights"], "pixmo_count", "--data", at["folder"], "--limit", "2", "--device", "cpu"],
        ],
        "train": [[*run, "--local_rank=0", "micro_batch=2", "wandb=null"]],
    }  # fmt: skip


def malformed(words: list[str], draw: random.Random) -> list[str]:
    """One to three words replaced, dropped, doubled, moved, glued or put in."""
    out = list(words)
    for _ in range(draw.choice((1, 1, 2, 3))):
        place = draw.randrange(len(out) + 1)
        deed = draw.randrange(8)
        values = [i for i, word in enumerate(out) if i and out[i - 1].startswith("--")]
        if (
            values and draw.random() < 0.5
        ):  # the value of an option, which argparse lets through more often
            out[draw.choice(values)] = draw.choice(ODD)
        elif deed == 0 or place == len(out):
            out.insert(place, draw.choice(ODD))
        elif deed == 1:
            out.pop(place)
        elif deed == 2:
            out.insert(draw.randrange(len(out) + 1), out[place])
        elif deed == 3 and "=" in out[place]:
            out[place] = f"{out[place].partition('=')[0]}={draw.choice(ODD)}"
        elif deed == 4:
            name = out[place]
            cut = draw.randrange(len(name) + 1)
            out[place] = name[:cut] + draw.choice(ODD) + name[cut + draw.randrange(2) :]
        elif deed == 5 and out[place].startswith("--"):
            out[place] = f"{out[place]}={draw.choice(ODD)}"
        else:
            out[place] = draw.choice(ODD)
        out = out or [""]
    return out


RAW = (  # words of Python and of its libraries, which say nothing to a user
    "could not convert", "invalid literal", "NoneType", "object has no", "Traceback", "unexpected keyword", "KeyError",
    "codec can't", "not subscriptable", "list index", "embedded null", "validation error", "Errno 22",
)  # fmt: skip


def outcome(command: str, words: list[str], heard: Callable[[], tuple[str, str]]) -> str:
    """What became of a command line: done, usage, said or reached; AssertionError for anything else."""
    heard()
    try:
        if command == "train":
            train.read_arguments(words)
        else:
            cli.run(command, words)
        return "done"
    except Reached:
        return "reached"
    except (ValueError, OSError) as error:  # train.main prints them
        assert command == "train"
        told = str(error)
    except SystemExit as error:
        if error.code in (0, None):
            return "done"
        if error.code == 2:
            told = heard()[1]
            assert "error: " in told, told
            return "usage"
        told = str(error.code) if isinstance(error.code, str) else " ".join(heard())
        if error.code == 1:
            return "said" if told.strip() else "nothing"
    assert told.strip() and len(told) < 9000, told[:500]
    assert not any(raw in told for raw in RAW), told[:500]
    return "said"


@pytest.fixture
def harmless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Processes, connections and ports end in Reached; so does what takes too long."""

    def reached(*args: Any, **kwargs: Any) -> None:
        raise Reached

    def too_long(*args: Any) -> None:
        raise AssertionError(f"no end after {SECONDS} s")

    monkeypatch.setattr(subprocess, "Popen", reached)
    monkeypatch.setattr(socket.socket, "connect", reached)
    monkeypatch.setattr(socket.socket, "bind", reached)
    monkeypatch.setattr(socket, "getaddrinfo", reached)
    monkeypatch.setattr(os, "_exit", reached)
    monkeypatch.setattr(Supervisor, "run", reached)
    monkeypatch.setattr(launch, "refuse_unknown", lambda hosts: None)  # asks the resolver
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    inner = tmp_path / "home" / "here"  # names without a folder, ~ and .. lie there
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    monkeypatch.setenv("HOME", str(inner))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(sys, "argv", ["molmo-ds"])
    old = signal.signal(signal.SIGALRM, too_long)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)
    for number, handler in before.items():
        signal.signal(number, handler)


COMMANDS = sorted(lines(dict.fromkeys((*NAMES, "root"), Path()), Path()))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_malformed_command_line(
    command: str,
    world: dict[str, Path],
    harmless: None,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    draw = random.Random(f"{SEED} {command}")
    seen: Counter[str] = Counter()
    faults = []
    before = {path: path.read_bytes() for path in world["root"].rglob("*") if path.is_file()}
    for number in range(request.config.getoption("--examples")):
        words = malformed(draw.choice(lines(world, tmp_path / str(number))[command]), draw)
        shown = json.dumps([word if len(word) < 80 else f"{word[:20]}..." for word in words])
        monkeypatch.setattr(sys, "argv", ["molmo-ds", command])
        signal.alarm(SECONDS)
        try:
            seen[outcome(command, words, capfd.readouterr)] += 1
        except Exception as error:
            faults.append(f"{number}: {shown}: {error!r}"[:700])
        finally:
            signal.alarm(0)
    assert not faults, f"{len(faults)}, the others: {dict(seen)}\n" + "\n".join(faults)
    after = {path: path.read_bytes() for path in world["root"].rglob("*") if path.is_file()}
    assert before.items() <= after.items(), "a file of the user's is gone or changed"
    print(command, dict(seen))
