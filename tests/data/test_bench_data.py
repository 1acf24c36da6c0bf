"""The bench of pictures runs, and its rows say what they measured; the figures themselves are no test."""

import json
from pathlib import Path

import pytest

from molmo_ds.testing.scripts import load

bench_data = load("tools/bench", "bench_data", "bench_stream")


def test_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_data.main(["images", "--rounds", "1", "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())["images"]
    assert [row["what"].split()[0] for row in rows] == ["decode", "decode", "file", "file"]
    shown = capsys.readouterr().out
    for row in rows:
        assert row["images per CPU-second"] == pytest.approx(1e3 / row["ms"])
        assert row["x decode + resize"] == pytest.approx(row["ms"] / rows[1]["ms"])
        assert row["what"] in shown
    with pytest.raises(SystemExit, match="no bench pictures"):
        bench_data.main(["pictures"])


def test_photos_are_like_photographs() -> None:
    """Photographs of this size and quality have about 186 KB; fewer bytes would decode faster."""
    assert len(bench_data.photo(0)) == pytest.approx(186_000, rel=0.1)
