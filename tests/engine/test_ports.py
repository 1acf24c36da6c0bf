"""Free ports lie below those of outgoing connections, and nothing listens on them."""

import socket
from pathlib import Path

import pytest

from molmo_ds.engine.launching import ports


def test_what_is_taken_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        taken = first.getsockname()[1]
        monkeypatch.setattr(ports, "RANGE", tmp_path / "range")
        monkeypatch.setattr(ports, "SPAN", 1)
        (tmp_path / "range").write_text(f"{taken + 1}\t60999\n")
        assert ports.free_port() != taken
    assert ports.free_port() == taken  # the only one below the range


@pytest.mark.parametrize("text", ["", "no numbers", "1024 60999"])
def test_a_range_that_says_nothing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "RANGE", tmp_path / "range")
    assert 1024 < ports.free_port() < 32_768
    (tmp_path / "range").write_text(text)
    assert ports.free_port() > 1024


def test_below_the_range() -> None:
    first = int(ports.RANGE.read_text().split()[0])
    assert all(first - ports.SPAN <= ports.free_port() < first for _ in range(20))
