"""Data sets as large as a thousand ranks read: what is computed equals what was listed, and each tar is asked once."""

import json
from hashlib import sha256
from pathlib import Path

import fsspec
import numpy as np
import pytest

from molmo_ds.data.order import lanes
from molmo_ds.data.order.lanes import BLOCK_CHUNKS, Order
from molmo_ds.data.order.loader import Mixture
from molmo_ds.data.read.shard_list import Bounds, Shard, ShardList
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.testing.scripts import load
from molmo_ds.testing.streams import FakeBuilder, run_config

scale = load("tools/bench", "scale_data")


@pytest.mark.parametrize("counts", [[7], [3, 1, 8], [4, 0, 8, 0]])
@pytest.mark.parametrize("length", [1, 4, 9])
def test_bounds_are_the_first_samples_of_the_chunks(counts: list[int], length: int) -> None:
    starts = np.concatenate([[0], np.cumsum(counts)])
    bounds = Bounds(starts, length)
    pairs = zip(starts[:-1], starts[1:])
    listed = np.concatenate([*(np.arange(a, b, length) for a, b in pairs), starts[-1:]])
    assert bounds[np.arange(len(bounds))].tolist() == listed.tolist()
    assert bounds[-1] == starts[-1] and int(bounds[0]) == 0
    for sample in range(starts[-1]):
        assert bounds.holding(sample) == np.searchsorted(listed, sample, side="right") - 1
    whole = json.dumps([BLOCK_CHUNKS, listed.tolist(), listed.tolist()])
    expected = sha256(whole.encode()).hexdigest()[:16]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "HASHED", 3)  # so that there are several pieces
        assert lanes.hash_of_bounds([listed, bounds]) == expected


def test_a_worker_keeps_its_own_lanes_in_the_same_order() -> None:
    bounds = Bounds(np.array([0, 90, 200]), 2)
    whole, mine = (Order("a", bounds, 3, 8) for _ in range(2))
    mine.serve(range(1, 8, 3))
    for lane in (1, 4, 7):
        places = [(epoch, i) for epoch in (0, 1, 2) for i in range(whole.length(lane, epoch))]
        assert [mine.at(lane, *place) for place in places] == [
            whole.at(lane, *place) for place in places
        ]
    assert mine.at(2, 2, 0) == whole.at(2, 2, 0), "a lane that was not named is dealt too"
    # written out, so that the order that runs have begun with cannot change unseen
    dealt = np.random.RandomState(np.frombuffer(sha256(repr((3, "a", 0)).encode()).digest(), "<u4"))
    assert whole._deals[2].keys() == set(range(8))
    fresh = Order("a", bounds, 3, 8)
    assert fresh._dealt(5, 0).tolist() == dealt.permutation(100)[5::8].tolist()


def test_shards_come_back_as_they_went_in() -> None:
    shards = [
        Shard(f"{folder}ä-{i}.tar", i % 3, 10 + i, sha256(bytes([i])).hexdigest())
        for i, folder in enumerate(["a/", "s3://b/", "", "a/b/", "/"])
    ]
    kept = ShardList(shards)
    assert list(kept) == shards and kept.bytes == 60 and kept.starts.tolist() == [0, 0, 1, 3, 3, 4]


def test_each_tar_is_asked_once_over_all_ranks() -> None:
    fsspec.register_implementation("counted", scale.Counted, clobber=True)
    places = {"a": "counted://50-a", "b": "counted://7-b"}
    mixture = Mixture.open(run_config(places, global_batch=8), FakeBuilder())
    asked = []
    for rank in range(8):
        scale.Counted.counts[:] = 0
        mixture.check(rank, 8)
        asked.append(int(scale.Counted.counts[scale.KINDS.index("size")]))
    assert sum(asked) == 57 and max(asked) == 8


def test_a_file_that_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="rows.jsonl is no tar; give a folder"):
        ShardSet(str(tmp_path / "rows.jsonl"))
