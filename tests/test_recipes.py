"""Each recipe of a released model runs one step: its own settings, a tiny network of the same kind, made-up shards."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from molmo_ds import settings
from molmo_ds.config import RunConfig
from molmo_ds.data.read.writer import write_shards
from molmo_ds.testing import run_files
from molmo_ds.testing.first_step import first_steps
from molmo_ds.testing.ranks import Forked

EXAMPLES = Path(__file__).parents[1] / "examples"
MODELS = ("molmoe_1b", "molmo_7b_o", "molmo_7b_d", "molmo_72b")
MIXTURE = "multitask/3.2-synthetic"
# each file alone; a file of a model, or of the last phase, over a mixture
RUNS = {
    **{f"captioner/{name}": [f"captioner/{name}"] for name in MODELS},
    **{
        f"multitask/{path.stem}": [f"multitask/{path.stem}"]
        for path in sorted((EXAMPLES / "multitask").glob("*.yaml"))
        if path.stem not in (*MODELS, "high_resolution")
    },
    **{f"multitask/{name}": [MIXTURE, f"multitask/{name}"] for name in MODELS},
    "multitask/high_resolution": [MIXTURE, "multitask/molmo_7b_d", "multitask/high_resolution"],
}
SMALL = [  # of what makes a network or a step large; everything else is the recipe's
    *run_files.MODEL,
    "model.vision.feature_layers=[-1,-2]",
    "model.vision.num_positions=null",
    "init_from=null",
    "data.sequence_length=512",
    "global_batch=2",
    "micro_batch=2",
    "data.num_workers=0",
    "max_steps=1",
    *(f"optim.{part}.warmup_steps=1" for part in ("connector", "vision", "text")),
]


def records(count: int = 24) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A caption with one of two transcripts, a question and points, on every second record's picture."""
    for key, parts in run_files.records(count):
        record = json.loads(parts["json"])
        said = [
            {"style": "transcript", "text": f"I see a square, {word}."} for word in ("grey", "pale")
        ]
        record["annotations"] += [
            {"one_of": said},
            {"style": "pointing", "label": "squares", "points": [[10, 20]], "point_scale": 100},
        ]
        yield key, parts | {"json": json.dumps(record).encode()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data as MOLMO_DATA_DIR names it: the same shards under the name of every source."""
    folder = tmp_path_factory.mktemp("recipes")
    overrides = run_files.make(folder / "run")
    write_shards(records(), folder / "shards", samples_per_shard=12)
    (folder / "tokenizer").symlink_to(folder / "run/tokenizer")
    assert f"data.tokenizer={folder / 'run/tokenizer'}" in overrides
    return folder


def words(name: str, data: Path) -> list[str]:
    """The overrides that make a recipe small; paths are the recipe's, and lead to the made-up shards."""
    made = settings.load([EXAMPLES / f"{part}.yaml" for part in RUNS[name]])
    given = list(SMALL)
    given += ["model.text.num_key_value_heads=4"] if made.model.text.qk_norm else []
    if made.model.text.num_experts:
        given += ["model.text.num_experts=4", "model.text.num_experts_per_tok=2"]
    if not made.data.sources:
        given.append(f"data.sources.chart_qa.path={data}/chart_qa-train")
    tasks = [name for name, one in made.evaluators.items() if one.task]
    given += [f"evaluators.{name}=null" for name in tasks]
    return [*given, f"data.tokenizer={data / 'tokenizer'}"]


@pytest.fixture(scope="module")
def small(data: Path) -> Iterator[dict[str, RunConfig]]:
    """Every recipe, small; its shards are there under the names that it gives."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MOLMO_DATA_DIR", str(data))
    made = {
        name: settings.load([EXAMPLES / f"{part}.yaml" for part in parts], words(name, data))
        for name, parts in RUNS.items()
    }
    for run in made.values():
        paths = [source.path for source in run.data.sources.values()]
        paths += [one.path for one in run.evaluators.values()]
        for path in map(Path, paths):
            assert path.parent == data
            if not path.exists():
                path.symlink_to(data / "shards")
    yield made
    patch.undo()


def test_every_recipe_takes_a_step(small: dict[str, RunConfig]) -> None:
    found = first_steps(small)
    assert set(found) == set(RUNS)
    for name, step in found.items():
        assert math.isfinite(step.loss) and 0.5 < step.loss / math.log(288) < 2, name
        assert step.sequences == 2, name


def test_the_captioner_from_its_command(
    small: dict[str, RunConfig], data: Path, tmp_path: Path
) -> None:
    """A dry run writes nothing; the run itself takes its epochs' steps, evaluates at the end and stops in time."""
    recipe = str(EXAMPLES / "captioner/molmoe_1b.yaml")
    rest = [word for word in words("captioner/molmoe_1b", data) if not word.startswith("max_steps")]
    rest += [f"out={tmp_path / 'out'}", "epochs=0.25", "log_interval=1", "--async_save=false"]
    environment = {"MOLMO_DATA_DIR": str(data)}
    code, said = Forked([recipe, *rest, "--dry_run"], tmp_path / "dry", environment).finish()
    assert code == 0, said
    assert "epochs=0.25 of 24 samples are max_steps=3" in said
    assert "24 of its own, 0.25 visits of each" in said
    assert "steps 1 to 3 of 2 sequences on 1 ranks" in said and "nothing was trained" in said
    assert not (tmp_path / "out").exists()
    code, said = Forked(
        [recipe, *rest, "time_limit_seconds=1e-6"], tmp_path / "late", environment
    ).finish()
    assert code == 0, said
    assert "is over at step 1 of 3; the same command continues the run" in said
    assert not (tmp_path / "out/DONE").exists()
    code, said = Forked([recipe, *rest], tmp_path / "said", environment).finish()
    assert code == 0, said
    assert "resumed from step 1" in said and (tmp_path / "out/DONE").exists()
    lines = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert {"eval/val/loss", "eval/caption_val/loss"} <= lines[-1].keys()
    assert settings.load(tmp_path / "out/config.yaml").max_steps == 3


def test_a_recipe_names_its_command() -> None:
    for parts in RUNS.values():
        file = EXAMPLES / f"{parts[-1]}.yaml"
        head = file.read_text().splitlines()[:3]
        [command] = [line for line in head if line.startswith("# molmo-ds ")]
        assert f"examples/{parts[-1]}.yaml" in command, file


def test_an_attention_dropout_is_the_recipes() -> None:
    """Only MolmoE's reference trained with it."""
    found = {
        name: settings.load(EXAMPLES / f"captioner/{name}.yaml").model.text.attention_dropout
        for name in MODELS
    }
    assert found == {name: 0.1 if name == "molmoe_1b" else 0.0 for name in MODELS}
