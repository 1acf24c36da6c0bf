"""The measurement of videos runs and says what it should."""

from pathlib import Path

import pytest

from molmo_ds.testing.scripts import load
from molmo_ds.testing.small_videos import film


def test_decode_and_packing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = load("tools/bench", "bench_video")
    (tmp_path / "a.mp4").write_bytes(film([100 * i for i in range(10)]))
    bench.main(["decode", "--folder", str(tmp_path)])
    assert "a.mp4: 8 frames, ours" in capsys.readouterr().out
    # thirty samples that fill a third each: every sequence is full, and none waits for long
    packs, longest = bench.packed([[100, 1]] * 30, bench.Budget(300, 3, 6, 30.0))
    assert [len(pack) for pack in packs] == [3] * 9 and longest <= 4
