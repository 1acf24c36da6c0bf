"""What a command line says twice: the last value counts, and that is said."""

from pathlib import Path
from types import ModuleType

import pytest

from molmo_ds.cli import launch, show, show_shards
from molmo_ds.cli.checked_options import Parser


def made() -> Parser:
    parser = Parser(prog="molmo-ds x")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--stop", action="append", default=[])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("files", nargs="*")
    return parser


@pytest.mark.parametrize(
    ("words", "limit", "said"),
    [
        (["--limit", "3", "--limit", "5"], 5, "--limit is given more than once; the last one"),
        (["--limit=3", "a", "--limit=5", "--limit=3"], 3, "the last one counts: 3."),
        (["--limit", "3", "--limit", "3"], 3, ""),
        (["a", "b", "--stop", "x", "--stop", "y", "--all", "--all"], None, ""),
        ([], None, ""),
    ],
)
def test_an_option_that_is_given_twice(
    words: list[str], limit: int | None, said: str, capsys: pytest.CaptureFixture
) -> None:
    parser = made()
    assert parser.parse_intermixed_args(words).limit == limit
    heard = capsys.readouterr().err
    assert said in heard if said else not heard
    assert parser.parse_args(["--limit", "9"]).limit == 9
    assert not capsys.readouterr().err, "another command line is another one"


def test_commands_within_a_command(capsys: pytest.CaptureFixture) -> None:
    top = Parser(prog="molmo-ds y")
    below = top.add_subparsers(dest="what").add_parser("to")
    below.add_argument("--out")
    assert top.parse_args(["to", "--out", "a", "--out", "b"]).out == "b"
    assert "molmo-ds y to: --out is given more than once" in capsys.readouterr().err


def test_the_commands_have_it(capsys: pytest.CaptureFixture) -> None:
    given, words = launch.parser().parse_known_args(["--hosts", "a", "x=1", "--hosts", "b"])
    assert (given.hosts, words) == ("b", ["x=1"])
    assert "--hosts is given more than once; the last one counts: b." in capsys.readouterr().err


@pytest.mark.parametrize("command", [show, show_shards])
@pytest.mark.parametrize(
    ("name", "said"),
    [("a.jpg", "a.jpg does not end as a page does"), ("none/a.html", "lies in no folder")],
)
def test_a_page_overwrites_no_picture(
    command: ModuleType, name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"mine")
    out = ["--out"] if command is show else []
    with pytest.raises(SystemExit):
        command.main([str(tmp_path), *out, str(tmp_path / name)])
    assert said in capsys.readouterr().err and (tmp_path / "a.jpg").read_bytes() == b"mine"
