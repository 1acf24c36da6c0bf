"""`molmo-ds ask --server`: a server's answer, or its sentence."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from molmo_ds.cli import run
from molmo_ds.testing.parrot import Parrot
from molmo_ds.testing.serving import Server


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> partial:
    monkeypatch.setattr(sys, "argv", ["molmo-ds ask"])
    return partial(run, "ask")


def test_an_answer(
    ask: partial, server: Server, parrot: Parrot, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "a.png")
    words = [
        "Is it dark?",
        "--server",
        f"{server.url}/",
        "--image",
        str(tmp_path / "a.png"),
        "--style",
        "vqa2",
    ]
    ask([*words, "--draw", str(tmp_path / "b.png")])
    assert capsys.readouterr().out == "User: vqa2: Is it dark? Assistant:\n"
    assert (tmp_path / "b.png").is_file() and len(parrot.asked[-1].prompt.images) > 1
    words[2] = f"{server.url}/v1"  # as OpenAI's own clients want it
    ask([*words, "--max-new-tokens", "500", "--stop", "dark", "--seed", "3"])
    assert capsys.readouterr().out == "User: vqa2: Is it \n"
    assert parrot.asked[-1].options.seed == 3
    ask([*words, "--top-p", "0.5", "--seed", "3"])
    assert (
        "the likeliest token is taken, and nothing is drawn by --top-p, --seed"
        in capsys.readouterr().err
    )
    ask([*words, "--top-p", "0.5", "--temperature", "0.5"])
    assert capsys.readouterr().err == ""


def test_mistakes(ask: partial, server: Server, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match=r"answers 400: The prompt has \d+ tokens.*\.$"):
        ask(["Why " * 900, "--server", server.url])
    with pytest.raises(SystemExit, match=r"127\.0\.0\.1:1 cannot be reached .*; is it running\?$"):
        ask(["Why?", "--server", "http://127.0.0.1:1"])
    with pytest.raises(SystemExit, match="is no URL; write it as"):
        ask(["Why?", "--server", "127.0.0.1:1"])
    with pytest.raises(SystemExit, match="--api-key-env names NOWHERE, which is empty"):
        ask(["Why?", "--server", server.url, "--api-key-env", "NOWHERE"])
    for words in (["Why?"], ["Why?", "--server", server.url, "--beams", "2"]):
        with pytest.raises(SystemExit):
            ask(words)
        assert capsys.readouterr().err.strip().endswith(".")
