"""The order of the stream, without a file: a property test over everything that it depends on, and that it ignores."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from molmo_ds.data.order.lanes import BLOCK_CHUNKS, Lane, Order
from molmo_ds.data.order.packing import Budget

LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 3), (8, 1)]  # ranks x workers


def bounds(samples: int, chunk: int) -> np.ndarray:
    return np.append(np.arange(0, samples, chunk), samples)


def size(source: int, sample: int, epoch: int) -> tuple[int, int] | None:
    if (sample * 31 + source) % 29 == 0:
        return None  # a bad sample
    return 20 + (sample * 7919 + epoch) % 180, (sample + source) % 5


def make_lane(
    lane: int, sizes: list[int], rates: list[float], seed: int, lanes: int, pool: int, chunk: int
) -> Lane:
    orders = [
        Order(f"source{i}", bounds(n, min(chunk, max(1, n // lanes))), seed, lanes)
        for i, n in enumerate(sizes)
    ]
    return Lane(lane, orders, np.array(rates) / sum(rates), size, Budget(400, 8, pool))


streams = st.tuples(
    st.lists(st.integers(8, 400), min_size=1, max_size=3),  # sizes of the sources
    st.lists(st.floats(0.05, 1), min_size=3, max_size=3),  # rates
    st.integers(0, 2**31),  # seed
    st.sampled_from([1, 2, 4, 8]),  # lanes
    st.integers(1, 20),  # pool
    st.integers(1, 9),  # samples per chunk
)


@settings(max_examples=60, deadline=None)
@given(streams, st.integers(0, 12), st.integers(1, 12))
def test_a_lane_goes_on_exactly_from_its_state(stream: tuple, before: int, after: int) -> None:
    sizes, rates, seed, lanes, pool, chunk = stream
    shape = (sizes, rates[: len(sizes)], seed, lanes, pool, chunk)
    for lane in range(lanes):
        whole = make_lane(lane, *shape)
        expected = [whole.next() for _ in range(before + after)]
        stopped = make_lane(lane, *shape)
        assert [stopped.next() for _ in range(before)] == expected[:before]
        resumed = make_lane(lane, *shape)
        resumed.load(json.loads(json.dumps(stopped.state())))
        assert [resumed.next() for _ in range(after)] == expected[before:]
        assert resumed.state() == whole.state()


@settings(max_examples=40, deadline=None)
@given(streams, st.integers(0, 3))
def test_every_sample_comes_once_per_epoch(stream: tuple, epoch: int) -> None:
    sizes, _, seed, lanes, _, chunk = stream
    for samples in sizes:
        edges = bounds(samples, min(chunk, max(1, samples // lanes)))
        order = Order("name", edges, seed, lanes)
        dealt = [
            [order.at(lane, epoch, p) for p in range(order.length(lane, epoch))]
            for lane in range(lanes)
        ]
        assert sorted(itertools.chain(*dealt)) == list(range(samples))
        lane = lanes - 1  # a place is found without walking to it, in any sequence of questions
        fresh = Order("name", edges, seed, lanes)
        assert [fresh.at(lane, epoch, p) for p in reversed(range(len(dealt[lane])))] == dealt[lane][
            ::-1
        ]


@settings(max_examples=20, deadline=None)
@given(streams)
def test_packs_hold_what_was_drawn_and_keep_the_budget(stream: tuple) -> None:
    sizes, rates, seed, lanes, pool, chunk = stream
    lane = make_lane(0, sizes, rates[: len(sizes)], seed, lanes, pool, chunk)
    packs = [lane.next() for _ in range(25)]
    out = [reference for pack in packs for reference in pack]
    left = [tuple(entry[:3]) for entry in lane.pool]
    assert len(set(out + left)) == len(out) + len(left)  # nothing twice in an epoch
    assert len(out) + len(left) + lane.bad == lane.draws == lane.seen  # nothing lost
    for pack in packs:
        tokens, crops = np.sum([size(*reference) for reference in pack], axis=0)
        assert tokens <= 400 and crops <= 8


def global_batches(
    steps: int, states: dict[int, dict] | None, ranks: int, workers: int, seed: int
) -> tuple:
    """What a cluster of ranks x workers yields, dealt as loader.py deals lanes."""
    lanes = 8
    count = 8 // ranks
    owners = [
        [
            list(range(rank * count, (rank + 1) * count))[worker::workers]
            for worker in range(workers)
        ]
        for rank in range(ranks)
    ]
    made = {}
    for group in itertools.chain(*owners):  # each worker makes lanes of its own: nothing is shared
        for lane in group:
            made[lane] = make_lane(lane, [120, 60], [0.7, 0.3], seed, lanes, 10, 4)
            if states:
                made[lane].load(states[lane])
    out = [[made[lane].next() for lane in range(lanes)] for _ in range(steps)]
    return out, {lane: made[lane].state() for lane in range(lanes)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_do_not_change_the_order(layout: tuple[int, int]) -> None:
    full, _ = global_batches(20, None, 1, 1, seed=5)
    head, states = global_batches(9, None, *layout, seed=5)
    for other in LAYOUTS:
        tail, _ = global_batches(11, states, *other, seed=5)
        assert head + tail == full
    assert global_batches(20, None, *layout, seed=6)[0] != full


def test_epochs_and_lanes_differ_and_neighbours_mix() -> None:
    order = Order("name", bounds(800, 10), 1, 2)
    first, second = (
        [order.at(0, epoch, p) for p in range(order.length(0, epoch))] for epoch in (0, 1)
    )
    assert first != second and set(first) != set(second)
    steps = np.abs(np.diff(first))
    assert np.mean(steps == 1) < 0.1  # neighbours in a shard are seldom neighbours in the stream
    blocks = [{sample // 10 for sample in first[i : i + 40]} for i in range(0, 400, 40)]
    # yet reads stay within 4 chunks at a time
    assert all(len(block) == BLOCK_CHUNKS == 4 for block in blocks)


def test_fewer_samples_than_lanes_is_refused() -> None:
    with pytest.raises(ValueError, match="'small' has 7 samples, fewer than the 8 sequences"):
        Order("small", bounds(7, 1), 0, 8)


def test_a_rotten_source_ends_the_lane() -> None:
    lane = Lane(
        0, [Order("rotten", bounds(50, 1), 0, 1)], np.ones(1), lambda *at: None, Budget(10, 1, 4)
    )
    with pytest.raises(ValueError, match="samples cannot be used"):
        lane.next()


def test_rates_are_kept() -> None:
    lane = make_lane(0, [4000, 4000, 4000], [0.6, 0.3, 0.1], 11, 1, 48, 50)
    for _ in range(800):
        lane.next()
    counts = [place[0] * 4000 + place[1] for place in lane.places]
    expected = np.array([0.6, 0.3, 0.1]) * lane.draws
    # five standard deviations of a binomial
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected * (1 - expected / lane.draws)))


def test_going_on_costs_the_same_after_ten_million_samples() -> None:
    asked = []

    def counted(source: int, sample: int, epoch: int) -> tuple[int, int]:
        asked.append(sample)
        return 20 + sample % 180, 1

    orders = [Order("large", bounds(12_000_000, 40), 0, 8)]
    early = Lane(3, orders, np.ones(1), counted, Budget(400, 8, 48))
    early.next()
    assert len(asked) == 48
    late = Lane(
        3, [Order("large", bounds(12_000_000, 40), 0, 8)], np.ones(1), counted, Budget(400, 8, 48)
    )
    place = 10_000_000 // 8
    late.load(
        {
            "draws": place,
            "places": [[0, place]],
            "pool": early.state()["pool"],
            "seen": place,
            "bad": 0,
        }
    )
    asked.clear()
    late.next()
    # only what refills the pool: nothing of the ten million is walked over
    assert 0 < len(asked) < 48
    assert asked[0] == orders[0].at(3, 0, place)
