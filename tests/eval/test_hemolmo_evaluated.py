"""HeMolmo under `evaluate`: each question a row of its own, the replies those of two passes without a cache."""

from pathlib import Path

import pytest
from eval_files import TASK, job, make
from numpy.random import RandomState

from molmo_ds.cli import evaluate as command
from molmo_ds.data.order.selected import collate_selected
from molmo_ds.engine import launch
from molmo_ds.engine.launch import World
from molmo_ds.eval import run
from molmo_ds.eval.clients.own_client import OwnClient
from molmo_ds.eval.subject import Checkpoint
from molmo_ds.infer import selected
from molmo_ds.infer.load import load
from molmo_ds.testing.ranks import run_ranks

ALONE = launch.alone()
HEMOLMO = (
    "preset=tiny_hemolmo",
    "model.images.overlap_margins=[1,1]",
    "model.selection.picks=3",
    *(f"model.{part}.initializer_range=0.1" for part in ("text", "vision", "connector")),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("hemolmo"), *HEMOLMO)


@pytest.fixture(scope="module")
def alone(folder: Path) -> run.Outcome:
    return run.evaluate(job(folder, "alone"), Checkpoint(folder / "model").client(None), ALONE)


def test_replies_are_those_without_a_cache(folder: Path, alone: run.Outcome) -> None:
    answerer = load(folder / "model", device="cpu")
    tokenizer = answerer.builder.tokenizer
    told = set()
    for asked, (row, found) in zip(
        run.asks(job(folder, "x").shards, alone.questions, 5), alone.pairs(), strict=True
    ):
        assert found["prompt"].startswith("User: text_vqa: What is number ")
        assert found["prompt"].endswith("IMAGE[4]IMAGE[3] Assistant:"), "4 low windows, 3 picks"
        prompt = answerer.builder.prompt(
            list(asked.pictures), asked.annotation, rng=RandomState(asked.seed)
        )
        ids, _ = selected.answer(answerer.model, collate_selected([prompt]), tokenizer.eos, 5)
        words = ids[0].tolist()
        words = words[: words.index(tokenizer.eos)] if tokenizer.eos in words else words
        assert found["reply"] == tokenizer.decode(words).strip(), row.id
        told.add(found["reply"])
    assert len(told) > 6, "replies are alike"


def test_ranks_and_batches_find_the_same(folder: Path, alone: run.Outcome) -> None:
    def part(world: World) -> run.Outcome | None:
        subject = Checkpoint(folder / "model", batch=3, world=world)
        return run.evaluate(job(folder, "two"), subject.client(None), world, part=subject.part())

    found, none = run_ranks(part, 2)
    assert found == alone and none is None
    replicas = folder / "replicas.json"
    replicas.write_text(
        '{"molmo_ds": {"engine": "inference", "slots": 4, "slot_tokens": 256, "prefill_tokens": 90}}'
    )

    def replica(world: World) -> run.Outcome | None:
        subject = Checkpoint(folder / "model", strategy=str(replicas), world=world)
        return run.evaluate(job(folder, "three"), subject.client(None), world, part=subject.part())

    found, none = run_ranks(replica, 2)
    assert found == alone and none is None
    answerer = load(folder / "model", device="cpu")
    for batch in (1, 7):
        client = OwnClient.of(answerer, batch=batch)
        assert run.evaluate(job(folder, f"batch-{batch}"), client, ALONE) == alone


def test_the_command_and_what_it_refuses(
    folder: Path, alone: run.Outcome, capsys: pytest.CaptureFixture
) -> None:
    words = [str(folder / "model"), TASK.name, "--data", str(folder / "data")]
    assert command.main(words) == 0
    assert "text_vqa:validation/vqa_score" in capsys.readouterr().out
    strategy = folder / "tp2.json"
    strategy.write_text(
        '{"tensor_parallel": {"autotp_size": 2}, "molmo_ds": {"engine": "inference"}}'
    )
    with pytest.raises(ValueError, match="HeMolmo passes its decoder twice before it answers"):
        Checkpoint(folder / "model", strategy=str(strategy))
