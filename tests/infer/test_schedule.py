"""The schedule: a pure function; slots are never lost, nobody waits for ever, and prefills are few."""

import random

import pytest

from molmo_ds.infer.schedule import Row, Schedule, compact

EOS = 0


def row(name: str, limit: int = 5, room: int = 100) -> Row:
    return Row(name, limit, room)


@pytest.mark.parametrize(
    ("ended", "moves", "left"),
    [
        ([], [], 0),
        ([False, False], [], 2),
        ([True, True], [], 0),
        ([True, False, False, True], [(2, 0)], 2),
        ([True, False, True, False, False], [(3, 0), (4, 2)], 3),
    ],
)
def test_the_last_rows_move_into_the_holes(ended: list[bool], moves: list, left: int) -> None:
    assert compact(ended) == (moves, left)


def test_why_an_answer_ends() -> None:
    schedule = Schedule(slots=4, groups=1, prefill_tokens=100, eos=EOS)
    rows = [row("stop"), row("length", limit=1), row("context", room=1), row("goes on")]
    for one in rows:
        schedule.add(one, one.name, 0, 10)
    schedule.begin(0)
    assert schedule.take(rows, [EOS, 7, 7, 7]) == [
        (0, "stop"),
        (1, "length"),
        (2, "context"),
        (3, None),
    ]
    assert list(schedule.rows) == ["goes on"]
    assert schedule.settle(0) == ([(3, 0)], 1)


def test_trees_grow_while_they_wait_up_to_the_slots() -> None:
    schedule = Schedule(slots=2, groups=1, prefill_tokens=100, eos=EOS)
    for name in "abc":
        schedule.add(row(name), "one picture", 30, 40)
    schedule.add(row("d"), "another", 30, 40)
    schedule.add(row("e"), "one picture", 30, 40)
    sizes = [([one.name for one in tree.rows], tree.tokens) for tree in schedule.waiting]
    assert sizes == [(["a", "b"], 50), (["c", "e"], 50), (["d"], 40)]
    assert [one.name for tree in schedule.begin(0) for one in tree.rows] == ["a", "b"]
    schedule.add(row("f"), "one picture", 30, 40)  # what has begun grows no more
    assert [len(tree.rows) for tree in schedule.waiting] == [2, 1, 1]


def test_padding_counts_where_rows_are_padded() -> None:
    """30, 30 and 50 tokens are 150 as padded rows."""
    for padded, begun in ((False, ["a", "b", "c"]), (True, ["a", "b"])):
        schedule = Schedule(slots=8, groups=1, prefill_tokens=120, eos=EOS, padded=padded)
        for name, tokens in (("a", 30), ("b", 30), ("c", 50)):
            schedule.add(row(name), name, 0, tokens)
        assert [one.name for tree in schedule.begin(0) for one in tree.rows] == begun


def test_a_prefill_keeps_its_budget_unless_one_alone_is_over_it() -> None:
    schedule = Schedule(slots=8, groups=1, prefill_tokens=100, eos=EOS)
    for name, tokens in (("long", 150), ("a", 60), ("b", 40), ("c", 1)):
        schedule.add(row(name), name, 0, tokens)
    begun = [[tree.rows[0].name for tree in schedule.begin(0)] for _ in range(3)]
    assert begun == [["long"], ["a", "b"], ["c"]]


def test_rows_begin_when_an_eighth_of_the_slots_is_free() -> None:
    schedule = Schedule(slots=16, groups=1, prefill_tokens=1000, eos=EOS)
    rows = [row(str(i)) for i in range(20)]
    for one in rows:
        schedule.add(one, one.name, 0, 10)
    assert len(schedule.begin(0)) == 16
    schedule.drop("3")
    assert schedule.settle(0) == ([(15, 3)], 15) and schedule.begin(0) == []
    schedule.drop("4")
    schedule.settle(0)
    assert [tree.rows[0].name for tree in schedule.begin(0)] == ["16", "17"]


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_everything_ends_and_no_slot_is_lost(groups: int) -> None:
    source = random.Random(groups)
    schedule = Schedule(slots=4, groups=groups, prefill_tokens=60, eos=EOS)
    rows = [row(str(i), limit=source.randint(1, 9), room=source.randint(1, 9)) for i in range(60)]
    flying: list[list[Row] | None] = [None] * groups
    given: dict[str, int] = {}
    dropped = set()
    held: list[list[str]] = [[] for _ in range(groups)]  # what lies in the slots, moved as told
    step = 0
    while schedule.rows or any(flying) or step < 60:
        if step < 60:
            schedule.add(rows[step], step // 3, 10, 10 + source.randint(1, 20))
        group = step % groups
        if flying[group] is not None:
            tokens = [source.randint(0, 4) for _ in flying[group]]
            for index, _ in schedule.take(flying[group], tokens):
                name = flying[group][index].name
                assert name not in dropped
                given[name] = given.get(name, 0) + 1
        moves, left = schedule.settle(group)
        for origin, target in moves:
            held[group][target] = held[group][origin]
        del held[group][left:]
        begun = [one for tree in schedule.begin(group) for one in tree.rows]
        held[group] += [one.name for one in begun]
        assert (
            held[group] == [one.name for one in schedule.running[group]] and len(held[group]) <= 4
        )
        flying[group] = begun or list(schedule.running[group]) or None
        if step % 5 == 4 and schedule.rows:
            name = source.choice(list(schedule.rows))
            dropped.add(name)
            schedule.drop(name)
        step += 1
        assert step < 2000
    assert len(given) + len(dropped) >= 60 and not schedule.waiting and not schedule.open
    assert all(one.ended for one in rows) and all(count <= 9 for count in given.values())
