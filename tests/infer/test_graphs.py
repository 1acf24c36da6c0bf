"""Decode steps of few shapes: padded, compiled, or recorded and replayed, the answers are those without a cache."""

from dataclasses import replace
from typing import Any

import answer_oracle
import pytest
import torch
from recorder import Recorder
from test_replica import FEW, NEVER, answers, check, network, oracle
from torch._dynamo.utils import counters

from molmo_ds.engine import compiled
from molmo_ds.engine.strategy import Execution
from molmo_ds.infer import slots
from molmo_ds.infer.options import Options
from molmo_ds.infer.question import Question
from molmo_ds.infer.replica import Replica
from molmo_ds.infer.slots import Bucket, Slots
from molmo_ds.model.molmo import Molmo

BUCKETS = Execution(buckets=True)


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "ROUND", 16)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Bucket]:
    """The buckets of all steps."""
    found: list[Bucket] = []
    carry = Slots.carry

    def noted(self: Slots) -> Any:
        found.append(self.bucket)
        return carry(self)

    monkeypatch.setattr(Slots, "carry", noted)
    return found


def asked_of(model: Molmo, count: int = 9) -> list[Question]:
    asked = answer_oracle.questions(model.config, count, Options(max_new_tokens=12))
    return [
        replace(q, options=replace(q.options, max_new_tokens=1 + i * 7 % 12))
        for i, q in enumerate(asked)
    ]


def test_buckets_are_powers_of_two_and_multiples_of_a_round() -> None:
    made = Slots([], 6, 40, torch.device("cpu"), buckets=True)
    expected = {
        (3,): (1, 16),
        (15,): (1, 16),
        (16,): (1, 32),
        (9, 9, 9): (4, 16),
        (39,) * 5: (6, 40),
    }
    for lengths, (rows, longest) in expected.items():
        made.lengths = list(lengths)
        assert made.bucket == Bucket(rows, longest)
    made.buckets = False
    assert made.bucket == Bucket(5, 40)


@pytest.mark.parametrize("family", ["qwen2", "olmoe"])
def test_free_slots_full_of_nan_disturb_no_row(family: str) -> None:
    model = network(family)
    asked = asked_of(model, 7)
    replica = Replica.of(model, NEVER, replace(FEW, slots=8, prefill_tokens=200), BUCKETS)
    replica.admit(asked)
    pieces = replica.step()  # all begin at once
    padded = 0
    while replica.busy:
        held = replica.slots[0]
        for core in held.cores:
            for kept in core.kept:
                kept[held.rows :] = torch.nan
        pieces += replica.step()
        padded += held.width - held.rows
    assert padded > 3
    for question in asked:
        mine = [
            (piece.token, piece.log_probability) for piece in pieces if piece.name == question.name
        ]
        made = answer_oracle.run(model, question)
        assert [token for token, _ in mine] == [token for token, _ in made]
        assert [number for _, number in mine] == pytest.approx(
            [number for _, number in made], abs=2e-5
        )


@pytest.mark.parametrize("family", ["qwen2", "olmoe"])
def test_a_recorded_step_answers_for_its_bucket(family: str, seen: list[Bucket]) -> None:
    model = network(family)
    asked = asked_of(model)
    recorder = Recorder()
    replica = Replica.of(model, NEVER, FEW, BUCKETS, recorder)
    check(asked, oracle(model, asked), NEVER, answers(replica, asked))
    assert len(recorder.graphs) == len(set(seen)) > 2
    assert sum(graph.replays for graph in recorder.graphs) == len(seen) > 2 * len(recorder.graphs)
    again = [replace(question, name=question.name + "!") for question in asked]
    check(again, oracle(model, again), NEVER, answers(replica, again))
    assert len(recorder.graphs) == len(set(seen))


def test_a_buffer_that_does_not_stay_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(self: Slots) -> None:
        self.lengths = [length + 1 for length in self.lengths]
        self.places = self.places + (torch.arange(self.count) < self.rows)
        self.positions = self.positions + (torch.arange(self.count) < self.rows)

    monkeypatch.setattr(Slots, "advance", moved)
    model = network()
    asked = asked_of(model)
    made = oracle(model, asked)
    check(asked, made, NEVER, answers(Replica.of(model, NEVER, FEW, BUCKETS), asked))
    with pytest.raises(AssertionError):
        check(
            asked, made, NEVER, answers(Replica.of(model, NEVER, FEW, BUCKETS, Recorder()), asked)
        )


def test_a_compiled_step_is_one_graph_for_each_bucket(
    seen: list[Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    model = network()
    asked = asked_of(model, 5)
    # torch's own limit, beyond which it goes on uncompiled
    with torch._dynamo.config.patch(recompile_limit=1):
        found = answers(Replica.of(model, NEVER, FEW, Execution(compile=True)), asked)
    check(asked, oracle(model, asked), NEVER, found)
    assert counters["stats"]["unique_graphs"] == len(set(seen)) > 2, (
        "layers share a graph, and a bucket has one"
    )
    assert len(seen) > 2 * len(set(seen)) and not counters["graph_break"]
    answers(Replica.of(model, NEVER, FEW, Execution(compile=True)), asked)
    assert counters["stats"]["unique_graphs"] == len(set(seen)), "another replica compiles nothing"
    torch._dynamo.reset()
