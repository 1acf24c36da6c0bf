"""The command molmo-ds: what it lists, what it imports, what it says to a wrong word."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from molmo_ds import cli
from molmo_ds.cli import reader_may_leave

ROOT = Path(__file__).parents[2]
TOOLS = {  # tools/NAME.py -> its command
    "generate": "ask",
    "compare": "compare",
    "evaluate": "evaluate",
    "judge": "judge",
    "make_shards": "shards make",
    "inspect_shards": "shards inspect",
    "visualize": "shards show",
    "show": "show",
    "download": "download",
    "convert": "convert",
    "plan_memory": "plan",
    "launch": "launch",
    "serve": "serve",
}


def call(*words: str) -> subprocess.CompletedProcess:
    """`molmo-ds WORDS`, and at the end the modules that it imported."""
    code = "import sys; from molmo_ds.cli import main; main(); print(*sys.modules)"
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT, timeout=300
    )


def test_help_lists_all_commands_and_imports_none_of_them() -> None:
    done = call("--help")
    assert done.returncode == 0, done.stderr
    *said, modules = done.stdout.splitlines()
    assert [line.split("  ")[1] for line in said if line.startswith("  ")] == list(cli.COMMANDS)
    assert not {"torch", "numpy", "transformers", "deepspeed"} & set(modules.split())
    assert call().stdout.splitlines()[:-1] == said


@pytest.mark.parametrize("words", [("shards", "--help"), ("shards", "-h")])
def test_help_of_a_group_lists_the_group(words: tuple[str, str]) -> None:
    shown = call(*words).stdout
    assert (
        "shards make" in shown
        and "shards inspect" in shown
        and "launch" not in shown.replace("launch.py", "")
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "there is no command trian"),
        (["shards"], "shards needs a word more"),
        (["shards", "mak"], "a word"),
    ],
)
def test_wrong_words_are_one_sentence(words: list[str], said: str) -> None:
    done = call(*words)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


def test_every_command_has_a_short_file_and_a_tool() -> None:
    files = {
        path.stem
        for path in Path(cli.__file__).parent.glob("*.py")
        if not path.stem.endswith("_options")
    }
    files.remove("__init__")
    assert files == {file for file, _ in cli.COMMANDS.values()}
    for path in Path(cli.__file__).parent.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 150, path
    assert {path.stem for path in (ROOT / "tools").glob("*.py")} == set(TOOLS)
    for tool, command in TOOLS.items():
        assert f'run("{cli.COMMANDS[command][0]}")' in (ROOT / f"tools/{tool}.py").read_text()


def test_the_help_of_each_command(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in cli.COMMANDS.keys() - {"train"}:  # which ends the process
        monkeypatch.setattr(sys, "argv", ["molmo-ds", *name.split(), "--help"])
        with contextlib.suppress(SystemExit):  # of argparse
            cli.main()
        assert len(capsys.readouterr().out.splitlines()) >= 8, name


def test_mistakes_name_what_was_called(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["molmo-ds", "plan", "tiny", "ds_configs/zero3.json", "0"])
    with pytest.raises(SystemExit, match="^molmo-ds plan: 0 is no number of GPUs"):
        cli.main()
    monkeypatch.setattr(sys, "argv", ["tools/plan_memory.py", "tiny", "ds_configs/zero3.json", "0"])
    with pytest.raises(SystemExit, match="^plan_memory: 0 is no number of GPUs"):
        cli.run("plan")


@pytest.mark.parametrize("words", [["--help"], ["shards", "--help"], ["evaluate", "--list"]])
def test_a_reader_that_leaves_ends_a_command_quietly(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # before the first word, so that no race decides
    found = subprocess.run(
        [sys.executable, "-c", "from molmo_ds.cli import main; main()", *words],
        env={**os.environ, "PYTHONUNBUFFERED": "1" if words[0] == "shards" else ""},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert (found.returncode, found.stderr) == (141, "")


def test_a_broken_pipe_of_another_kind_is_an_error(capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(BrokenPipeError), reader_may_leave():
        raise BrokenPipeError(32, "a peer is gone")
