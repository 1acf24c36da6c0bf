"""Evaluators of a run: own numbers, equal to one process's under every strategy, and the training's bits untouched."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from eval_files import make
from torch import Tensor

from molmo_ds import settings
from molmo_ds.batch import Batch
from molmo_ds.config import EvaluatorConfig, RunConfig, SourceConfig
from molmo_ds.data.order.loader import Mixture, build_stream
from molmo_ds.data.order.packing import Budget, collate
from molmo_ds.data.read.writer import write_shards
from molmo_ds.engine import build_engine, launch
from molmo_ds.engine.answering.in_training import bytes_of, fitting, layouts
from molmo_ds.engine.launch import World
from molmo_ds.engine.strategy import Limits
from molmo_ds.eval.clients.client import FAILED, Reply
from molmo_ds.eval.in_training.evaluators import Evaluator, build_evaluators
from molmo_ds.eval.in_training.loss_of_source import LossOfSource, pack
from molmo_ds.eval.in_training.task import TaskInTraining
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing import run_files
from molmo_ds.testing.ranks import run_ranks

STRATEGIES = ("zero1", "zero3", "pipe_zero1")
Numbers = dict[str, float]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards `run/shards` and `words`, and the questions of text_vqa in `data`."""
    made = make(tmp_path_factory.mktemp("evaluators"))
    write_shards(texts(), made / "words", samples_per_shard=20)
    return made


def texts():
    """Nine samples without a picture."""
    for i in range(9):
        said = {
            "style": "demo",
            "question": "what is it?",
            "answer": f"{'about ' * (1 + i % 3)}{i}",
        }
        yield f"{i:06d}", {"json": json.dumps({"images": [], "annotations": [said, said]}).encode()}


@pytest.fixture(scope="module")
def config(folder: Path, tiny_run: list[str]) -> RunConfig:
    """Two losses of a source each, one of a single sample, and a task of one question."""
    made = settings.load(overrides=[*tiny_run, f"out={folder / 'none'}", "optim.text.lr=1e-2"])
    shades = next(iter(made.data.sources.values())).path
    return replace(
        made,
        evaluators={
            "shades": EvaluatorConfig(path=shades, examples=30, interval=2),
            "words": EvaluatorConfig(path=str(folder / "words"), interval=2),
            "one": EvaluatorConfig(path=shades, examples=1, interval=2),
            "reading": EvaluatorConfig(
                task="text_vqa", data_folder=str(folder / "data"), examples=1, interval=2
            ),
        },
    )


def trained(
    world: World, config: RunConfig, watched: bool
) -> tuple[Numbers, dict[str, Tensor], dict[str, Tensor]]:
    """What evaluators say after step 2, the weights then, and those after step 3."""
    engine = build_engine(config, world)
    stream = build_stream(config, engine.data_rank, engine.data_size)
    evaluators = build_evaluators(config, world) if watched else []
    found: Numbers = {}
    then: dict[str, Tensor] = {}
    for _ in range(3):
        engine.train_step(next(stream)[0])
        for evaluator in evaluators:
            if evaluator.due(engine.step, 3) and engine.step == 2:
                found |= evaluator.run(engine, lambda: None)
        if engine.step == 2 and watched:
            then = dict(engine.full_state())
    weights = dict(engine.full_state())
    engine.close()
    return found, then, weights


def under_strategies(world: World, config: RunConfig) -> dict[str, list]:
    """Each strategy alone and watched."""
    out = {}
    for name in STRATEGIES:
        run = replace(config, strategy=f"ds_configs/{name}.json")
        out[name] = [trained(world, run, watched) for watched in (False, True)]
    return out


@pytest.fixture(scope="module")
def found(config: RunConfig) -> list[dict[str, list]]:
    """Of both ranks."""
    return run_ranks(under_strategies, 2, config)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_is_untouched(found: list, strategy: str) -> None:
    alone, watched = found[0][strategy]
    assert alone[2].keys() == watched[2].keys()
    assert all(torch.equal(alone[2][name], weight) for name, weight in watched[2].items())
    assert any(not torch.equal(watched[1][name], weight) for name, weight in watched[2].items()), (
        "nothing was learnt"
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_losses_are_those_of_one_process(found: list, strategy: str, config: RunConfig) -> None:
    numbers, weights, _ = found[0][strategy][1]
    model = Molmo(config.model, config.optim.z_loss)
    model.load_state_dict(weights)
    for name, count in (("shades", 30), ("words", 9), ("one", 1)):
        got = {
            key: numbers[f"eval/{name}/{key}"] for key in ("loss", "ce_loss", "z_loss", "accuracy")
        }
        assert got == pytest.approx(by_hand(model.eval(), config, name, count), rel=2e-5), name
        assert numbers[f"eval/{name}/examples"] == count
    assert len({round(numbers[f"eval/{name}/loss"], 3) for name in ("shades", "words", "one")}) == 3


def by_hand(model: Molmo, config: RunConfig, name: str, count: int) -> Numbers:
    """The weighted means, one sample at a time."""
    prompts = replace(config.data.prompts, shuffle_messages=False)
    sources = {name: SourceConfig(path=config.evaluators[name].path)}
    mixture = Mixture.open(
        replace(config, data=replace(config.data, sources=sources, prompts=prompts))
    )
    sums = torch.zeros(4, dtype=torch.float64)
    for number in range(count):
        batch = collate([[mixture.build((0, number, 0))]], config.data.sequence_length)
        with torch.no_grad():
            sums[:3] += torch.stack([value.double() for value in model(batch)])
        sums[3] += batch.loss_weights.double().sum()
    ce, z, accuracy, _ = (sums / sums[3]).tolist()
    return {"loss": ce + z, "ce_loss": ce, "z_loss": z, "accuracy": accuracy}


def test_both_ranks_know_the_same(found: list) -> None:
    for strategy in STRATEGIES:
        numbers = [found[rank][strategy][1][0] for rank in range(2)]
        timeless = [{k: v for k, v in one.items() if not k.endswith("/seconds")} for one in numbers]
        assert timeless[0] == timeless[1]
        assert timeless[0]["eval/reading/examples"] == 1 and "eval/reading/vqa_score" in timeless[0]


def answers_under(world: World, config: RunConfig, shared: int) -> tuple[int, list[str]]:
    """(ranks of a replica, the replies of all) where a rank has memory for one of `shared` parts of the weights."""
    limits = Limits(slots=8, slot_tokens=config.model.text.max_position_embeddings)
    wanted = next(one for one in layouts(config.model, 2, limits) if one.shared == shared)
    free = bytes_of(config.model, wanted, 2, 4)
    engine = build_engine(config, world)
    task = TaskInTraining(free, "reading", config, world)
    replies = []

    def keep(found: dict[str, Reply]) -> Numbers:
        replies.extend(found[row.id].text for row in task.questions)
        return {"examples": float(len(found))}

    task.score = keep
    task.measure(engine, 60, lambda: None)
    task.measure(engine, 60, lambda: None)  # with the same groups of ranks
    engine.close()
    return task.layout.shared, replies


def test_the_network_of_now_answers(config: RunConfig, folder: Path) -> None:
    """ZeRO-3 on two ranks, of which neither can hold the weights, replies as one process does; so do others."""
    asked = {
        "reading": EvaluatorConfig(task="text_vqa", data_folder=str(folder / "data"), examples=5)
    }
    run = replace(config, evaluators=asked, init_from=str(folder / "model"))
    alone = replace(run, strategy="ds_configs/zero0.json")
    [(size, expected)] = run_ranks(answers_under, 1, alone, 1)
    assert size == 1 and len(set(expected)) > 1 and expected[:5] == expected[5:]
    for name in ("zero3", "pipe_zero1", "zero3_tp"):
        many = replace(run, strategy=f"ds_configs/{name}.json")
        (size, replies), (_, none) = run_ranks(answers_under, 2, many, 2)
        assert (size, replies, none) == (2, expected, [])


@pytest.mark.everything
@pytest.mark.parametrize("strategy", ["zero2_ep", "zero3_ep"])
def test_a_network_of_experts_answers_in_training(strategy: str, tmp_path: Path) -> None:
    experts = ["model.text.num_experts=4", "model.text.num_experts_per_tok=2"]
    folder = make(tmp_path, *experts)
    run = settings.load(overrides=[*run_files.make(tmp_path / "r"), *experts, f"out={tmp_path}"])
    task = EvaluatorConfig(task="text_vqa", data_folder=str(folder / "data"), examples=5)
    run = replace(run, evaluators={"reading": task}, init_from=str(folder / "model"))
    alone = replace(run, strategy="ds_configs/zero0.json")
    [(_, expected)] = run_ranks(answers_under, 1, alone, 1)
    many = replace(run, strategy=f"ds_configs/{strategy}.json")
    (size, replies), (_, none) = run_ranks(answers_under, 2, many, 2)
    assert (size, replies, none) == (2, expected, [])


def test_replicas_take_as_few_ranks_as_the_weights_need(config: RunConfig) -> None:
    limits = Limits(slots=8, slot_tokens=64)
    found = list(layouts(config.model, 4, limits))
    assert [one.shared for one in found] == [1, 2, 4]
    sizes = [bytes_of(config.model, one, 4, 2) for one in found]
    assert sizes == sorted(sizes, reverse=True)
    for layout, size in zip(found, sizes):
        assert fitting(config.model, 4, size, limits, 2) == layout
    with pytest.raises(ValueError, match=r"^needs 0\.0 GB on each of 4 ranks"):
        fitting(config.model, 4, sizes[-1] - 1, limits, 2)


@pytest.fixture
def reading(config: RunConfig, folder: Path) -> TaskInTraining:
    one = EvaluatorConfig(task="text_vqa", data_folder=str(folder / "data"), examples=4)
    run = replace(config, evaluators={"reading": one})
    return TaskInTraining(1 << 40, "reading", run, launch.alone())


def test_only_what_was_answered_is_scored(reading: TaskInTraining) -> None:
    right, wrong, failed, _ = reading.questions
    truth = right.annotation["answers"][0]
    replies = {
        right.id: Reply(id=right.id, text=truth, token_count=2, end="stop"),
        wrong.id: Reply(id=wrong.id, text="no idea", token_count=2, end="stop"),
        failed.id: Reply(id=failed.id, text="", token_count=0, end=f"{FAILED}no luck"),
    }
    figures = reading.score(replies)
    assert figures["vqa_score"] == 0.5 and figures["failed"] == 1 and figures["examples"] == 3


class Scale:
    """An engine that only weighs what it is given."""

    world = launch.alone()

    def __init__(self, rank: int = 0, ranks: int = 1) -> None:
        self.data_rank = rank
        self.data_size = ranks
        self.calls: list[float] = []

    def eval_loss(self, batches: list[Batch]) -> Numbers:
        weight = sum(batch.loss_weights.double().sum().item() for batch in batches)
        self.calls.append(weight)
        return {"weight": weight, "loss": 1.0, "ce_loss": 1.0, "z_loss": 0.0, "accuracy": 0.5}


def words_of(config: RunConfig, path: Path, **changes: object) -> LossOfSource:
    data = replace(config.data, sequence_length=100, crops_per_sequence=8)
    one = EvaluatorConfig(path=str(path))
    run = replace(config, evaluators={"words": one}, data=data, **changes)
    return LossOfSource("words", run, launch.alone())


def test_ranks_share_the_samples_and_make_equally_many_calls(
    config: RunConfig, folder: Path
) -> None:
    measure = words_of(config, folder / "words", global_batch=6)
    assert len(measure.sequences) == 9
    whole = Scale()
    assert measure.measure(whole, 60, lambda: None)["examples"] == 9 and len(whole.calls) == 2
    parts = [Scale(rank, 6) for rank in range(6)]  # in the second call three ranks have nothing
    counts = [measure.measure(part, 60, lambda: None)["examples"] for part in parts]
    assert counts == [2, 2, 2, 1, 1, 1]
    assert [part.calls[1] for part in parts][3:] == [0, 0, 0]
    together = [sum(calls) for calls in zip(*(part.calls for part in parts), strict=True)]
    assert together == pytest.approx(whole.calls, rel=1e-12)


def test_several_sources_with_prompts_of_their_own(config: RunConfig, folder: Path) -> None:
    """The first samples of each; the second source counts half, and nothing is said before a question."""
    words = str(folder / "words")
    bare = replace(config.data.prompts, system_prompt="none", message_format="none")

    def weights(**given: object) -> tuple[float, int, int]:
        one = EvaluatorConfig(examples=4, **given)
        measure = LossOfSource("x", replace(config, evaluators={"x": one}), launch.alone())
        engine = Scale()
        found = measure.measure(engine, 60, lambda: None)
        tokens = sum(len(measure.mixture.build((0, i, 0)).input_ids) for i in range(4))
        return sum(engine.calls), int(found["examples"]), tokens

    alone = weights(path=words)
    half = {"a": SourceConfig(path=words), "b": SourceConfig(path=words, weight=0.5)}
    both = weights(sources=half)
    assert (alone[1], both[1]) == (4, 8)
    assert both[0] == pytest.approx(1.5 * alone[0], rel=1e-6)
    spoken = weights(path=words, prompts=bare)
    assert spoken[2] < alone[2] and spoken[0] == pytest.approx(alone[0])


def test_crops_of_high_resolution_are_drawn_in_training_only(
    config: RunConfig, folder: Path
) -> None:
    images = replace(config.model.images, p_high_res=1.0, high_res_max_crops=6)
    measure = words_of(config, folder / "words", model=replace(config.model, images=images))
    assert measure.mixture.builders[0].images.config.p_high_res == 0


def test_the_time_is_bounded(config: RunConfig, folder: Path) -> None:
    engine = Scale()
    found = words_of(config, folder / "words", global_batch=2).measure(engine, 0.0, lambda: None)
    assert len(engine.calls) == 1 and found["examples"] == 2


def test_samples_that_cannot_be_decoded_are_left_out(config: RunConfig, tmp_path: Path) -> None:
    def torn():
        for number, (key, parts) in enumerate(run_files.records(6)):
            cut = {
                name: data[:-30] if number == 2 and name == "png" else data
                for name, data in parts.items()
            }
            yield key, cut

    write_shards(torn(), tmp_path / "torn", samples_per_shard=20)
    measure = words_of(config, tmp_path / "torn", global_batch=2)
    assert measure.examples == 6
    assert measure.measure(Scale(), 60, lambda: None)["examples"] == 5


def test_when_it_is_due(config: RunConfig) -> None:
    def steps(**given: object) -> list[int]:
        run = replace(config, evaluators={"x": EvaluatorConfig(path="somewhere", **given)})
        return [step for step in range(1, 8) if Evaluator("x", run, None).due(step, 7)]

    assert steps(interval=3) == [3, 6, 7]
    assert steps(interval=3, at_end=False) == [3, 6]
    assert steps(interval=None) == [7]


def test_packs_keep_the_order_and_the_budget() -> None:
    sizes = {0: (5, 1), 2: (5, 0), 3: (1, 0), 4: (2, 3), 5: (2, 1)}
    assert pack(sizes, Budget(10, 3, 1)) == [[0, 2], [3, 4], [5]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluators.a.interval=5"], "evaluators.a needs one of path"),
        (["evaluators.a.path=x", "evaluators.a.task=chart_qa"], "evaluators.a needs one of path"),
        (
            ["evaluators.a.path=x", "evaluators.a.interval=null", "evaluators.a.at_end=false"],
            "evaluators.a never runs",
        ),
        (
            ["evaluators.a.path=x", "evaluators.a.max_seconds=600.0"],
            "it must be below timeout_seconds=600",
        ),
    ],
)
def test_settings_that_cannot_be(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        settings.load(overrides=words)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("chart_q", "did you mean 'chart_qa'"),
        ("counting", "names 3 tasks; give each an evaluator"),
        ("doc_qa:test", "its answers are not public"),
        ("dense_caption_eval", "its answers are not public"),
    ],
)
def test_tasks_that_cannot_be_asked(config: RunConfig, task: str, said: str) -> None:
    asked = replace(config, evaluators={"x": EvaluatorConfig(task=task)})
    with pytest.raises(ValueError, match=said):
        build_evaluators(asked, launch.alone())


def test_weights_that_do_not_fit(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    with pytest.raises(ValueError, match=r"^evaluators\.reading\.task needs .* use more ranks, "):
        build_evaluators(config, launch.alone())
