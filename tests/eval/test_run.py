"""An evaluation: each question once at every number of ranks and after every kill, figures equal to the last bit."""

import dataclasses
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from eval_files import TASK, job, make

from molmo_ds import settings
from molmo_ds.engine import launch
from molmo_ds.engine.launch import World
from molmo_ds.eval import log, plan, results, run
from molmo_ds.eval.clients.client import Ask, Reply, failure
from molmo_ds.eval.clients.own_client import OwnClient, usual_batch
from molmo_ds.eval.subject import Checkpoint
from molmo_ds.infer.load import Answerer, load
from molmo_ds.ops.linear import library
from molmo_ds.testing.ranks import run_ranks

ALONE = launch.alone()


class MadeUp:
    """Answers from the question alone, and remembers what it was asked; `broken` questions get no reply."""

    def __init__(self, seconds: float = 0.0, broken: Iterable[str] = ()):
        self.seconds = seconds
        self.broken = set(broken)
        self.asked: list[str] = []

    def replies(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        for ask in asks:
            self.asked.append(ask.id)
            time.sleep(self.seconds)
            if ask.id in self.broken:
                yield failure(ask, "no luck")
            else:
                text = ("red", "blue", "a long street")[sum(ask.id.encode()) % 3]
                yield Reply(
                    id=ask.id,
                    text=text,
                    token_count=2,
                    end="stop",
                    prompt=ask.annotation["question"],
                )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def answerer(folder: Path) -> Answerer:
    return load(folder / "model", device="cpu")


@pytest.fixture(scope="module")
def alone(folder: Path, answerer: Answerer) -> run.Outcome:
    """What one process finds, 64 questions at a time."""
    return run.evaluate(job(folder, "alone"), OwnClient.of(answerer), ALONE)


def test_answers_do_not_depend_on_the_order_of_weights_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, alone: run.Outcome
) -> None:
    """Where this CPU multiplies a few rows faster so, the decoder's matrices lie column by column."""
    for columns in (True, False):
        monkeypatch.setattr(library, "columns_are_faster", lambda columns=columns: columns)
        answerer = load(folder / "model", device="cpu")
        lying = {
            name
            for name, parameter in answerer.model.named_parameters()
            if parameter.ndim == 2 and parameter.stride(1) > 1
        }
        layers = answerer.model.config.text.num_hidden_layers
        # q, k, v, o, gate, up and down of each, and the head
        assert len(lying) == (7 * layers + 1 if columns else 0), lying
        client = OwnClient.of(answerer)
        outcome = run.evaluate(job(folder, f"columns-{columns}"), client, ALONE)
        assert outcome.rows == alone.rows and outcome.figures == alone.figures


def lines(folder: Path) -> list[str]:
    """The ids of all rows in the logs of all ranks."""
    texts = [file.read_text() for file in folder.glob("log/*.jsonl")]
    return sorted(json.loads(line)["id"] for text in texts for line in text.splitlines())


def test_the_model_answers_unlike_questions_differently(alone: run.Outcome) -> None:
    """Or equal replies would show nothing."""
    assert len(alone.rows) == 18 and len({row["reply"] for row in alone.rows}) > 6
    assert alone.rows[0]["prompt"] == "IMAGE[4] User: text_vqa: What is number 0 here? Assistant:"


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_ask_each_question_once_and_find_the_same(
    folder: Path, answerer: Answerer, alone: run.Outcome, ranks: int
) -> None:
    def part(world: World) -> run.Outcome | None:
        return run.evaluate(job(folder, f"ranks-{ranks}"), OwnClient.of(answerer, batch=3), world)

    found, *others = run_ranks(part, ranks)
    assert found == alone and others == [None] * (ranks - 1)
    assert lines(folder / f"ranks-{ranks}") == sorted(row["id"] for row in alone.rows)


@pytest.mark.parametrize("replicas", [1, 2])
def test_replicas_over_ranks_find_the_same(folder: Path, alone: run.Outcome, replicas: int) -> None:
    """Two ranks share a decoder, or there are two such pairs."""
    name = f"replicas-{replicas}"
    strategy = folder / "tp2.json"
    limits = {"slots": 4, "slot_tokens": 256, "prefill_tokens": 64}
    strategy.write_text(
        json.dumps(
            {"tensor_parallel": {"autotp_size": 2}, "molmo_ds": {"engine": "inference", **limits}}
        )
    )

    def part(world: World) -> run.Outcome | None:
        subject = Checkpoint(folder / "model", strategy=str(strategy), world=world)
        return run.evaluate(job(folder, name), subject.client(None), world, part=subject.part())

    found, *others = run_ranks(part, 2 * replicas)
    assert found == alone and others == [None] * (2 * replicas - 1)
    assert lines(folder / name) == sorted(row["id"] for row in alone.rows)
    logs = sorted(file.name for file in (folder / name).glob("log/*.jsonl"))
    assert logs == [f"rank-{2 * index}.jsonl" for index in range(replicas)]


def test_a_rank_without_questions_is_no_special_case(folder: Path) -> None:
    def part(world: World) -> run.Outcome | None:
        return run.evaluate(job(folder, "few", limit=2), MadeUp(), world)

    found, *others = run_ranks(part, 3)
    assert found == run.evaluate(job(folder, "few-alone", limit=2), MadeUp(), ALONE)
    assert found.figures["questions"] == 2 and others == [None, None]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_changes_nothing(
    folder: Path, answerer: Answerer, alone: run.Outcome, batch: int
) -> None:
    assert (
        run.evaluate(job(folder, f"batch-{batch}"), OwnClient.of(answerer, batch=batch), ALONE)
        == alone
    )


def killed(folder: Path, name: str, rows: int) -> None:
    """Evaluate in a process that is killed when `rows` rows are in its log."""
    child = os.fork()
    if child == 0:
        run.evaluate(job(folder, name), MadeUp(seconds=0.02), ALONE)
        os._exit(0)
    deadline = time.monotonic() + 20
    file = folder / name / "log/rank-0.jsonl"
    while time.monotonic() < deadline and not (
        file.is_file() and file.read_bytes().count(b"\n") >= rows
    ):
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it had ended before it was killed"


def test_kills_lose_nothing_and_repeat_nothing(folder: Path) -> None:
    killed(folder, "killed", 3)
    first = lines(folder / "killed")
    killed(folder, "killed", len(first) + 4)
    second = lines(folder / "killed")
    assert 0 < len(first) < len(second) < 18
    client = MadeUp()
    found = run.evaluate(job(folder, "killed"), client, ALONE)
    assert not set(client.asked) & set(second) and len(client.asked) == 18 - len(second)
    assert found == run.evaluate(job(folder, "never-killed"), MadeUp(), ALONE)
    assert lines(folder / "killed") == sorted(row["id"] for row in found.rows)


def test_a_torn_line_is_asked_again_and_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run.evaluate(job(folder, "torn"), MadeUp(), ALONE)
    file = folder / "torn/log/rank-0.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    client = MadeUp()
    assert run.evaluate(job(folder, "torn"), client, ALONE) == whole
    assert len(client.asked) == 1 and "1 lines" in caplog.text
    assert lines(folder / "torn") == sorted(row["id"] for row in whole.rows)  # every line is whole


def test_logs_of_more_ranks_than_now_count(folder: Path) -> None:
    whole = run.evaluate(job(folder, "more"), MadeUp(), ALONE)
    rows = (folder / "more/log/rank-0.jsonl").read_text().splitlines(keepends=True)
    for rank in range(3):
        (folder / f"more/log/rank-{rank}.jsonl").write_text("".join(rows[rank:17:3]))
    client = MadeUp()
    assert run.evaluate(job(folder, "more"), client, ALONE) == whole
    assert len(client.asked) == 1


def test_answers_of_other_provenance_are_never_mixed(folder: Path) -> None:
    run.evaluate(job(folder, "other"), MadeUp(), ALONE)
    with pytest.raises(
        ValueError, match=r"checkpoint tiny, now large; crops None, now 36.*--overwrite"
    ):
        run.evaluate(job(folder, "other", checkpoint="large", crops=36), MadeUp(), ALONE)
    client = MadeUp()
    run.evaluate(job(folder, "other", checkpoint="large"), client, ALONE, overwrite=True)
    assert len(client.asked) == 18


def test_failures_are_listed_never_scored_and_asked_again(folder: Path) -> None:
    first = f"{TASK.name}:validation:0.0"
    found = run.evaluate(job(folder, "failed"), MadeUp(broken=[first]), ALONE)
    assert found.failures == {first: "failed: no luck"} and found.rows[0]["scores"] == {}
    assert (found.figures["failed"], found.figures["scored"]) == (1, 17)
    assert results.write(job(folder, "failed"), found, {}, {})["failures"] == found.failures
    assert results.cached(job(folder, "failed"), ALONE) is None
    client = MadeUp()
    assert run.evaluate(job(folder, "failed"), client, ALONE).figures["failed"] == 0
    assert client.asked == [first]


def test_finished_metrics_count_for_equal_provenance_only(folder: Path) -> None:
    mine = job(folder, "cached")
    assert results.cached(mine, ALONE) is None
    metrics = results.write(
        mine, run.evaluate(mine, MadeUp(), ALONE), {"limit": None}, {"text": {}}
    )
    assert results.cached(mine, ALONE) == metrics
    with pytest.raises(ValueError, match="limit None, now 5"):
        results.cached(job(folder, "cached", limit=5), ALONE)


def test_saved_replies_are_scored_without_a_model(folder: Path) -> None:
    whole = run.evaluate(job(folder, "again"), MadeUp(), ALONE)
    assert run.rescore(job(folder, "again")) == whole
    file = folder / "again/log/rank-0.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    assert list(run.rescore(job(folder, "again")).failures.values()) == ["failed: it was not asked"]


def test_a_limit_takes_the_first_and_a_seed_draws(folder: Path) -> None:
    names = [row.id.rpartition(":")[2] for row in job(folder, "x", limit=4).rows()]
    assert names == ["0.0", "0.1", "0.2", "1.0"]
    drawn = [row.id for row in job(folder, "x", limit=4, shuffle_seed=1).rows()]
    assert (
        len(set(drawn)) == 4
        and drawn == sorted(drawn)
        and drawn != [row.id for row in job(folder, "x", limit=4).rows()]
    )
    assert drawn == [row.id for row in job(folder, "x", limit=4, shuffle_seed=1).rows()]


def test_a_video_shows_no_more_frames_than_asked_for() -> None:
    film = {"clip": [0.0, 1.0]}
    assert run.shortened(None, 4) is None and run.shortened(film, None) == film
    assert run.shortened(film, 4) == {**film, "num_frames": 4}
    assert run.shortened({"num_frames": 2}, 4) == {"num_frames": 2}
    assert run.shortened({"num_frames": 9}, 4) == {"num_frames": 4}
    assert [plan.others(36, 64), plan.others(None, 8), plan.others(None, None)] == [
        "36crop-64frame",
        "8frame",
        "",
    ]


def test_questions_of_a_picture_follow_each_other_largest_first(folder: Path) -> None:
    groups = run.by_picture(job(folder, "x").rows(), lambda width, height: width // 30)
    assert [{row.picture for row in group} for group in groups][:2] == [
        {"picture 5"},
        {"picture 2"},
    ]
    assert [len(group) for group in groups] == [3] * 6
    assert [group[0].size[0] for group in groups] == [100, 100, 70, 70, 40, 40]


def test_a_reply_that_nobody_has_is_a_sentence(folder: Path) -> None:
    mine = job(folder, "nobody")
    with pytest.raises(ValueError, match="18 of 18 questions .* have no reply"):
        run.finish(mine, mine.rows(), {}, {})


def test_the_files_have_the_references_keys(folder: Path) -> None:
    mine = job(folder, "files")
    found = run.evaluate(mine, MadeUp(), ALONE)
    results.write(mine, found, {"limit": None}, {"text": {}})
    predictions = json.loads((mine.results / "predictions.json").read_text())
    assert predictions[0] == {
        "id": "text_vqa:validation:0.0",
        "prediction": found.rows[0]["reply"],
        "token_count": 2,
        "prompt": "What is number 0 here?",
        "image_id": "picture 0",
        "example_id": "0.0",
        "metadata_prompt": "not ours",
    }
    metrics = json.loads((mine.results / "metrics.json").read_text())
    assert {
        "metrics",
        "date",
        "eval_config",
        "model_config",
        "provenance",
        "scored_by",
        "figures",
        "failures",
    } == set(metrics)
    assert metrics["metrics"]["vqa_score"] == found.figures["metrics"]["vqa_score"]["value"]
    assert time.strptime(metrics["date"], "%m/%d/%Y, %H:%M:%S")
    assert results.read_rows(mine.results) == found.rows


def test_the_run_s_log_and_tensorboard_get_the_figures(folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "log.jsonl").write_text('{"step": 5}\n')
    results.record(tmp_path, 5, {"text_vqa:validation": {"metrics": {"vqa_score": 0.25}}})
    added = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[1])
    assert added["step"] == 5 and added["eval/text_vqa:validation/vqa_score"] == 0.25
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [
        (one.step, one.value) for one in events.Scalars("eval/text_vqa:validation/vqa_score")
    ] == [(5, 0.25)]


def test_a_line_that_is_no_row_is_dropped(tmp_path: Path) -> None:
    written = log.Log(tmp_path, 0)
    whole = {"id": "a", "reply": "\ud800 und Grüße", "tokens": 1, "end": "stop", "prompt": ""}
    written.append(whole)
    written.close()
    other = json.dumps({**whole, "id": "b"}).encode()
    with open(tmp_path / "log/rank-0.jsonl", "ab") as file:
        file.write(b'[1]\n{"reply": 1}\n\xff\n{"id": "c"}\n' + other + b"\n" + other[:-9])
    assert list(log.read(tmp_path)) == ["a", "b"]


def test_a_split_without_public_answers_gets_the_test_server_s_file(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = dataclasses.replace(job(folder, "private"), split="test")
    found = run.evaluate(mine, MadeUp(), ALONE)
    results.write(mine, found, {}, {})
    sent = json.loads((mine.results / "submission.json").read_text())
    assert sent == [
        {"question_id": row.metadata["example_id"], "answer": said["reply"]}
        for row, said in found.pairs()
    ]
    first = "text_vqa:test:0.0"
    (mine.results / "submission.json").unlink()
    broken = run.evaluate(mine, MadeUp(broken=[first]), ALONE, overwrite=True)
    results.write(mine, broken, {}, {})
    assert "without a reply: 0.0" in caplog.text and not (mine.results / "submission.json").exists()


def test_small_networks_answer_more_at_a_time() -> None:
    assert usual_batch(settings.load(overrides=["preset=tiny"]).model, 4) == 256
    assert usual_batch(settings.load(overrides=["preset=molmo_7b_d"]).model, 2) == 64
