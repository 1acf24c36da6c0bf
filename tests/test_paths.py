"""Paths as people write them: `~`, brackets in folders, and words of a tool in any order."""

import os
from pathlib import Path

import pytest

from molmo_ds import files
from molmo_ds.cli import convert, inspect_shards
from molmo_ds.cli import plan as plan_memory
from molmo_ds.cli import show_shards as visualize
from molmo_ds.cli.make_shards_options import parse
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.testing import run_files

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder of shards, folder of a tokenizer)."""
    folder = tmp_path_factory.mktemp("made")
    run_files.make(folder)
    return folder / "shards", folder / "tokenizer"


@pytest.fixture
def bracketed(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same shards in a folder whose name would be a pattern, below a home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "data [v2] *"
    folder.mkdir()
    for file in made[0].rglob("*"):
        target = folder / file.relative_to(made[0])
        target.parent.mkdir(exist_ok=True, parents=True)
        if file.is_file():
            os.link(file, target)
    return folder


def test_folders_are_no_patterns(bracketed: Path, made: tuple[Path, Path]) -> None:
    tars = sorted(str(tar) for tar in bracketed.iterdir() if tar.suffix == ".tar")
    assert len(tars) == 2
    assert files.find(str(bracketed / "*.tar")) == tars
    assert files.find(str(bracketed / "shard-00000[0-1].tar")) == tars
    assert files.find(tars[0]) == tars[:1]
    assert files.find(str(bracketed.parent / "d*" / "*.tar")) == []
    odd = bracketed / "odd[0].tar"
    odd.write_bytes(b"")
    assert files.find(str(odd)) == [str(odd)], "a file that is there is no pattern either"


def test_shards_below_home_and_brackets(bracketed: Path, made: tuple[Path, Path]) -> None:
    whole = ShardSet(str(made[0]))
    one = bracketed / "shard-000000.tar"
    for path, count in (
        (f"~/{bracketed.name}", 40),
        (str(bracketed / "*.tar"), 40),
        (str(one), 20),
    ):
        shards = ShardSet(path)
        assert len(shards) == count
        assert shards.record(3) == whole.record(3)
    (bracketed / "stray.tar").write_bytes(one.read_bytes())
    with pytest.raises(ValueError, match=r"holds stray.tar, which its index does not know"):
        ShardSet(str(bracketed))


def test_home_in_the_arguments_of_tools(bracketed: Path, capsys: pytest.CaptureFixture) -> None:
    inspect_shards.main([f"~/{bracketed.name}"])
    assert "40" in capsys.readouterr().out
    assert files.local("~/x") == bracketed.parent / "x" and files.local("./~x") == Path("~x")


def test_settings_and_options_of_visualize_in_any_order(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    shards, tokenizer = map(str, made)
    run = ["preset=tiny", "data.sequence_length=256", "data.crops_per_sequence=16"]
    named = ["--tokenizer", tokenizer, "--sequences", "2"]
    orders = {
        "described": [shards, "OUT", *named, *run],
        "between": [shards, *named[:2], "OUT", *run, *named[2:]],
        "dashed": [*named, shards, "OUT", *(f"--{word}" for word in run)],
    }
    pages = {}
    for name, words in orders.items():
        out = tmp_path / f"{name}.html"
        visualize.main([str(out) if word == "OUT" else word for word in words])
        pages[name] = out.read_text()
    assert len(pages) == 3 and len(set(pages.values())) == 1
    with pytest.raises(SystemExit):
        visualize.main([shards, str(tmp_path / "no.html"), "--sequenses", "3"])


def test_settings_and_options_of_other_tools_in_any_order(capsys: pytest.CaptureFixture) -> None:
    tables = []
    words = ["tiny", "ds_configs/zero3.json", "2", "micro_batch=2", "max_steps=5"]
    for order in (
        words,
        [words[3], *words[:3], words[4]],
        [*words[:1], "--micro_batch=2", *words[1:3], words[4]],
    ):
        plan_memory.main(order)
        tables.append(capsys.readouterr().out)
    assert len(set(tables)) == 1 and "2 GPUs" in tables[0]
    with pytest.raises(ValueError, match="strategy=x says twice what STRATEGY says"):
        plan_memory.main([*words[:3], "strategy=x"])
    for wrong in ("0", "-3"):
        with pytest.raises(ValueError, match="is no number of GPUs"):
            plan_memory.count_gpus(wrong)
    behind = ["backbones", "OUT", "text.a=1", "--llm", "x=y", "--vision", "a=b", "text.b=2"]
    before = ["backbones", "--llm", "x=y", "--vision", "a=b", "OUT", "text.a=1", "text.b=2"]
    assert convert.read_arguments(behind) == convert.read_arguments(before)
    with pytest.raises(SystemExit):
        convert.read_arguments(["consolidate", "SRC", "OUT", "text.a=1"])


def test_field_names_of_make_shards_take_no_other_word() -> None:
    rest = ["dataset", "SRC", "OUT", "--style", "vqa2"]
    fields = ["--map", "question=query", "answer=label"]
    for place in range(len(rest)):  # at its end --style needs its word
        parsed = parse(
            [*rest[:place], *fields, *rest[place:]] if place < 4 else [*rest, *fields], ""
        )
        assert (parsed.source, parsed.out, parsed.map) == ("SRC", "OUT", fields[1:])
