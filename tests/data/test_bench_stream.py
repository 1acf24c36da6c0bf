"""The bench of exactness runs on streams that hold something."""

from molmo_ds.testing.scripts import load

bench_stream = load("tools/bench", "bench_stream")
bench_data = load("tools/bench", "bench_data")


def test_exactness_compares_streams_that_hold_something() -> None:
    rows = bench_stream.bench_exactness(bench_data.small_photos(), stops=2, length=4)
    assert [row["identical"] for row in rows] == ["True", "True"]
    assert all(row["sequences"] == 4 * 8 and row["documents"] > 40 for row in rows)
    assert all(
        row["megabytes of pixels"] > 1 and row["ranks x workers"] != row["resumed on"]
        for row in rows
    )
