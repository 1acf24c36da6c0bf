"""tools/generate.py: an answer, or one sentence that says what was wrong."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hub_models import tiny
from PIL import Image

from molmo_ds.cli import run
from molmo_ds.testing.random_weights import random_state, weights_folder

Tool = Callable[[list[str]], None]
QUESTION = "What is it?"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Tool:
    monkeypatch.setattr(sys, "argv", ["tools/generate.py"])
    return partial(run, "ask")


@pytest.fixture(scope="module")
def checkpoint(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that knows 64 positions."""
    config = tiny()
    config = replace(config, text=replace(config.text, max_position_embeddings=64))
    return weights_folder(
        tmp_path_factory.mktemp("tool") / "weights", config, random_state(config), tokenizer
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(folder / "small.png")
    (folder / "text.png").write_text("no picture")
    return folder


WRONG = [
    (["--temperature", "nan"], "temperature"),
    (["--temperature", "inf"], "temperature"),
    (["--temperature", "-0.5"], "temperature"),
    (["--top-p", "nan"], "top_p"),
    (["--top-p", "0"], "top_p"),
    (["--top-p", "1.1"], "top_p"),
    (["--top-k", "-1"], "top_k"),
    (["--beams", "0"], "beams"),
    (["--beams", "5000"], "5000 beams are more than the 512 words"),
    (["--beams", "2", "--temperature", "1"], "sample"),
    (["--max-new-tokens", "0"], "max_new_tokens"),
    (["--max-new-tokens", "-3"], "max_new_tokens"),
    (["--seed", str(2**80)], "seed"),
    (["--stop", ""], "stop"),
    (["--device", "nonsense"], "device 'nonsense'"),
    (["--device", "meta"], "device 'meta'"),
    (["--device", "cuda:99"], "device 'cuda:99'"),
    (["--image", "nowhere.png"], "nowhere.png"),
    (["--image", "text.png"], "text.png"),
    (["--image", "."], "no picture"),
    (["--tokenizer", "nowhere"], "nowhere"),
    (["--checkpoint", "nowhere"], "nowhere"),
    (["--checkpoint", "small.png"], "small.png"),
    (["--draw", "a.png"], "--image"),
    (["--image", "small.png", "--draw", "a.nonsense"], "a.nonsense"),
    (["--image", "small.png", "--draw", "nowhere/a.png"], "nowhere/a.png"),
    (["--image", "small.png", "--draw", "./small.png"], "would overwrite what is asked about"),
    (["--api-key-env", "NOWHERE"], "belongs to a server"),
]


@pytest.mark.parametrize(
    ("arguments", "named"),
    WRONG,
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_sentence(
    tool: Tool,
    checkpoint: Path,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    named: str,
) -> None:
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as ended:
        tool(["--checkpoint", str(checkpoint), QUESTION, *arguments])
    captured = capsys.readouterr()
    # 2 is argparse's
    said = captured.err.splitlines()[-1] if ended.value.code == 2 else ended.value.code
    assert named in said and said.endswith(".") and "\n" not in said
    assert not captured.out


@pytest.mark.parametrize("question", ["", "  ", "x " * 200])
def test_questions_that_cannot_be_answered(tool: Tool, checkpoint: Path, question: str) -> None:
    with pytest.raises(
        SystemExit, match=r"^generate: The (question is empty|prompt has \d+ tokens).*\.$"
    ):
        tool(["--checkpoint", str(checkpoint), question])


@pytest.mark.parametrize("way", [[], ["--temperature", "1"], ["--beams", "2"]])
def test_the_end_of_the_context_is_said(
    tool: Tool, checkpoint: Path, way: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tool(["--checkpoint", str(checkpoint), QUESTION, "--max-new-tokens", "1000", *way])
    said = capsys.readouterr().err
    assert "of 1000 tokens, at position 64" in said


def test_an_answer(
    tool: Tool, checkpoint: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--checkpoint",
        str(checkpoint),
        "--image",
        str(files / "small.png"),
        "--max-new-tokens",
        "3",
    ]
    tool([*arguments, QUESTION])
    tool([*arguments, "", "--style", "long_caption"])  # a caption needs no question
    tool([*arguments, QUESTION, "--temperature", "1e-320"])  # the likeliest word, as 0
    captured = capsys.readouterr()
    assert captured.out and "position" not in captured.err
