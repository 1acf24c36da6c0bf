"""HeMolmo's recipes, small: from shards under ZeRO-3 on two ranks as in one process, stopped and resumed, evaluated."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from molmo_ds import rules, settings
from molmo_ds.config import RunConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.order.loader import Mixture, build_stream
from molmo_ds.data.read.writer import write_shards
from molmo_ds.engine.strategy import read_strategy
from molmo_ds.engine.strategy.refusals import refuse
from molmo_ds.testing import run_files
from molmo_ds.testing.oracle import difference, plain
from molmo_ds.testing.ranks import Forked, free_port, rank_environment
from molmo_ds.weights.checkpoint import read_full_state

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "examples/hemolmo/captioner.yaml"
QUESTIONS = ROOT / "examples/hemolmo/questions.yaml"
LANES = 4
STEPS = 3
SMALL = [  # of what makes a network or a step large; everything else is the recipe's
    *(word for word in run_files.MODEL if "overlap_margins" not in word),
    "preset=tiny_hemolmo",
    "model.text.response_residual_dropout=0",
    "model.selection={picks: 5, scored_dropout: 0, window_dropout: 0, first_pass_layers: [0, 1]}",
    "init_from=null",
    "data.sequence_length=128",
    "data.num_workers=0",
    f"global_batch={LANES}",
    "micro_batch=1",
    f"max_steps={STEPS}",
    "log_interval=1",
    "optim.name=sgd",
    *(f"optim.{part}={{lr: 0.02, warmup_steps: 1}}" for part in ("connector", "vision", "text")),
]
WITH_ZERO = {"zero0", "zero1", "zero2", "zero3", "zero3_hpz", "zero3_nvme", "zero3_offload"}


def records() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The last annotation of each made-up record: answers of 3 to 30 words, every fifth without a picture."""
    for key, parts in run_files.records():
        record = json.loads(parts["json"])
        record["annotations"] = record["annotations"][-1:]
        yield key, parts | {"json": json.dumps(record).encode()}


def several() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Made-up records, of which every other has two annotations: 60 samples of 40 records."""
    return run_files.records()


def charts() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Eight pictures with a question each, as `evaluate` reads them."""
    kept = (parts for _, parts in run_files.records() if "png" in parts)
    for number, parts in zip(range(8), kept):
        asked = {"style": "chart_qa", "question": f"What is bar {number}?", "answers": ["7"]}
        record = {"images": ["png"], "annotations": [asked], "metadata": {"example_id": number}}
        yield f"{number:03d}", parts | {"json": json.dumps(record).encode()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of one annotation a record and of several, questions to evaluate, a tokenizer."""
    folder = tmp_path_factory.mktemp("hemolmo")
    run_files.make(folder / "run")
    write_shards(records(), folder / "shards", samples_per_shard=20)
    write_shards(several(), folder / "several", samples_per_shard=20)
    write_shards(charts(), folder / "chart_qa-validation")
    return folder


@pytest.fixture(scope="module")
def words(folder: Path) -> list[str]:
    """The overrides of a small run; its shards are there under the names that the recipe gives."""
    given = [*SMALL, f"data.tokenizer={folder / 'run/tokenizer'}"]
    given += [
        f"data.sources.{name}.path={folder / 'shards'}"
        for name in ("pixmo_cap", "pixmo_transcript")
    ]
    given += [f"evaluators.val={{path: {folder / 'shards'}, examples: 8, interval: 3}}"]
    return [*given, "evaluators.caption_val=null"]


@pytest.fixture(scope="module")
def asked(folder: Path) -> list[str]:
    """The same of the recipe for questions, with a task that is asked in training."""
    recipe = settings.load(QUESTIONS)
    given = [*SMALL, "data.sequence_length=256", "model.text.residual_dropout=0"]
    given += [f"data.tokenizer={folder / 'run/tokenizer'}"]
    for name, source in recipe.data.sources.items():
        path = folder / ("several" if source.split_annotations else "shards")
        given += [f"data.sources.{name}.path={path}", f"evaluators.val.sources.{name}.path={path}"]
    given += ["evaluators.val.examples=3", f"evaluators.val.interval={STEPS}"]
    given += [f"evaluators.chart_qa.interval={STEPS}", f"evaluators.chart_qa.data_folder={folder}"]
    # with its own seed the first steps draw no text
    return [*given, "evaluators.doc_qa=null", "data.seed=1"]


def run_of(words: list[str], recipe: Path = RECIPE) -> RunConfig:
    return settings.load(recipe, words)


def two_ranks(words: list[str], folder: Path, recipe: Path = RECIPE) -> list[str]:
    """What two ranks of the recipe's command said."""
    port = free_port()
    ranks = [
        Forked([str(recipe), *words], folder / f"said{r}.txt", rank_environment(r, 2, port))
        for r in range(2)
    ]
    said = []
    for rank in ranks:
        code, output = rank.finish()
        assert code == 0, output[-3000:]
        said.append(output)
    return said


def check(words: list[str], tmp_path: Path, recipe: Path) -> dict[str, float]:
    """The last line of the log of two ranks, stopped after a step and resumed, which are compared with one process."""
    config = run_of(words, recipe)
    stream = build_stream(config, 0, 1)
    steps = [next(stream)[0] for _ in range(STEPS)]
    counts = [float((batch.loss_weights > 0).sum()) for batch in steps[0]]
    assert sum(counts[:2]) != sum(counts[2:]), "both ranks learn as many tokens"
    assert len({len(batch.images) for step in steps for batch in step}) > 1
    alone = plain(config, lanes=lambda step: steps[step - 1])[::2]
    out = tmp_path / "out"
    two_ranks([*words, f"out={out}", "stop_after=1"], tmp_path, recipe)
    said = two_ranks([*words, f"out={out}"], tmp_path, recipe)
    assert "resumed from step 1" in said[0] and (out / "DONE").exists()
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    state = dict(read_full_state(out / "checkpoints"))
    loss, weights = difference(([line["loss"] for line in lines], state), alone)
    assert loss < 1e-5 and weights < 1e-5
    first = plain(config, lanes=lambda step: steps[0])[::2]  # what another stream would have made
    assert difference(first, alone)[1] > 1e-4
    return lines[-1]


def test_the_recipe_on_two_ranks_is_one_process(words: list[str], tmp_path: Path) -> None:
    """SGD, rows of unlike lengths and texts among them."""
    last = check(words, tmp_path, RECIPE)
    assert last["eval/val/examples"] == 8 and 0 < last["eval/val/loss"] < 20


def test_questions_on_two_ranks_are_one_process(asked: list[str], tmp_path: Path) -> None:
    """The same, of records with two annotations; a task is asked in training, by ranks that hold parts of weights."""
    last = check(asked, tmp_path, QUESTIONS)
    assert last["eval/val/examples"] == 6 * 3 and 0 < last["eval/val/loss"] < 20
    assert last["eval/chart_qa/examples"] == 8 and last["eval/chart_qa/failed"] == 0


def test_questions_are_samples_of_their_own(asked: list[str]) -> None:
    """Those of PixMo, whose pictures have several; they would be refused otherwise."""
    config = run_of(asked, QUESTIONS)
    assert (config.model.selection.picks, config.max_steps) == (5, STEPS)
    mixture = Mixture.open(config)
    assert [len(samples) for samples in mixture.sets] == [40] * 2 + [60] * 4
    together = {
        name: replace(source, split_annotations=False)
        for name, source in config.data.sources.items()
    }
    whole = Mixture.open(replace(config, data=replace(config.data, sources=together)))
    assert [len(samples) for samples in whole.sets] == [40] * 6
    with pytest.raises(BadSample, match="one annotation, not 2; set split_annotations=true of its"):
        whole.size(2, 1, 0)
    assert mixture.size(2, 1, 0) and mixture.size(2, 2, 0)


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda p: p.stem)
def test_other_strategies_are_refused(path: Path, words: list[str]) -> None:
    config = run_of([*words, f"strategy={path}", "optim.name=adamw"])
    if path.stem in WITH_ZERO:
        refuse(read_strategy(str(path)), config, 4)
        return
    with pytest.raises(ValueError, match=r"which only ZeRO and one process do; use .*zero3\.json"):
        refuse(read_strategy(str(path)), config, 4)


def test_packed_rows_are_refused(words: list[str]) -> None:
    packed = run_of([*words, "data.packing=pack", "out=x"])
    with pytest.raises(ValueError, match="one sample a row; set data.packing=to_max or to_128"):
        rules.refuse(rules.training(packed))
    with pytest.raises(ValueError, match="set model.images.crop_mode=overlap-and-resize-c2"):
        run_of([*words, "model.images.crop_mode=resize"])
