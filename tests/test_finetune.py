"""examples/finetune: from a released folder and own data, by each recipe, to an export that answers."""

import importlib.util
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from molmo_ds import settings, train
from molmo_ds.cli import make_shards
from molmo_ds.engine.launch import World
from molmo_ds.hub import export
from molmo_ds.hub import load as hub
from molmo_ds.infer.generate import Options
from molmo_ds.infer.load import load
from molmo_ds.testing import run_files, serving
from molmo_ds.testing.ranks import run_ranks
from molmo_ds.testing.scripts import load as load_script

RECIPES = Path(__file__).parents[1] / "examples/finetune"
DATA = {  # recipe: kind of file, name, what it holds, options, as the recipe's first lines have them
    "pointing": (
        "csv",
        "points.csv",
        "image,label,x,y\na.png,cat,5,6\na.png,cat,30,9\nb.png,dog,39,29\n",
        ["--style", "pointing", "--map", "points=x,y", "--points-in", "pixels"],
    ),
    "captions": ("folder", ".", "", ["--style", "long_caption"]),
    "questions": (
        "jsonl",
        "one.jsonl",
        {"messages": [["user", "how bright is it?"], ["assistant", "dark"]], "images": ["a.png"]},
        ["--style", "user_qa"],
    ),
    "several_pictures": (
        "jsonl",
        "two.jsonl",
        {
            "messages": [["user", "which is brighter?"], ["assistant", "b"]],
            "images": ["a.png", "b.png"],
        },
        ["--style", "user_qa"],
    ),
}
MICRO = [
    "preset=tiny",
    *run_files.MODEL,
    *serving.CROPS,
    *serving.FITS,
    "data.num_workers=0",
    "data.pool_size=2",
    "data.sequence_length=512",
    "global_batch=2",
    "max_steps=1",
    "log_interval=1",
    "optim.connector.warmup_steps=0",
    "optim.vision.warmup_steps=0",
    "optim.text.warmup_steps=0",
]
FULL = [  # as the recipes' first lines have it
    "strategy=ds_configs/zero3.json",
    "lora.components=[]",
    "optim.text.lr=1e-5",
    "optim.vision.freeze=false",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released folder and its weights in our names; pictures; the shards of each recipe."""
    folder = tmp_path_factory.mktemp("finetune")
    export.to_hub(serving.weights_folder(folder), folder / "released")
    hub.from_hub(str(folder / "released"), str(folder / "start"))
    pictures = folder / "pictures"
    pictures.mkdir()
    for name, shade in (("a", 20), ("b", 200)):
        Image.fromarray(np.full((30, 40, 3), shade, np.uint8)).save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text(f"A grey square of shade {shade}.")
    for recipe, (kind, name, content, options) in DATA.items():
        if isinstance(content, dict):
            turns = [{"role": role, "content": text} for role, text in content["messages"]]
            content = "\n".join([json.dumps(content | {"messages": turns})] * 4)
        if content:
            (pictures / name).write_text(content)
        out = str(folder / "shards" / recipe)
        make_shards.main([kind, str(pictures / name), out, "--workers", "1", *options])
    return folder


def words(folder: Path, recipe: str, out: str, more: list[str]) -> list[str]:
    """The command line of a run of a recipe, tiny."""
    return [
        str(RECIPES / f"{recipe}.yaml"),
        *MICRO,
        f"init_from={folder / 'start'}",
        f"data.tokenizer={folder / 'start/tokenizer'}",
        f"data.sources.mine.path={folder / 'shards' / recipe}",
        f"out={folder / out}",
        *more,
    ]


def run(world: World, line: list[str]) -> int:
    return train.train(train.read_arguments(line))


@cache
def recipes() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def test_every_recipe_has_its_data_here() -> None:
    assert recipes() == sorted(DATA)


@pytest.mark.parametrize("recipe", DATA)
def test_a_recipe_is_what_its_first_lines_say(recipe: str) -> None:
    """Its own paths are those of the commands above it, and the overrides of all weights can be read."""
    text = (RECIPES / f"{recipe}.yaml").read_text()
    config = settings.load(RECIPES / f"{recipe}.yaml")
    assert config.lora.components == ("text",) and config.optim.vision.freeze
    assert all(
        override.replace("lora.components=[]", "'lora.components=[]'") in text for override in FULL
    )
    assert f" {config.data.sources['mine'].path} " in text and f" {config.init_from}\n" in text
    assert f" {config.out} " in text and config.data.tokenizer == f"{config.init_from}/tokenizer"
    full = settings.load(RECIPES / f"{recipe}.yaml", FULL)
    assert full.lora.components == () and not full.optim.vision.freeze


@pytest.mark.parametrize("recipe", DATA)
def test_adapters_on_one_rank(folder: Path, recipe: str) -> None:
    assert run_ranks(run, 1, words(folder, recipe, f"lora-{recipe}", [])) == [0]
    told = json.loads((folder / f"lora-{recipe}/log.jsonl").read_text())
    assert np.isfinite(told["loss"]) and told["images"] >= 2
    assert (
        told["grad_norm/text"] > 0 and told["grad_norm/vision"] == 0
    )  # the adapters learn, the frozen tower does not


def test_what_was_learnt_answers_as_an_export(folder: Path) -> None:
    export.to_hub(str(folder / "lora-pointing"), str(folder / "exported"), "bf16")
    answerer = load(str(folder / "exported"))
    picture = np.full((30, 40, 3), 20, np.uint8)
    prompt = answerer.builder.prompt([picture], "Point to the cat.", "pointing")
    (text,), _ = answerer.answer([prompt], Options(max_new_tokens=3))
    assert text


def test_every_weight_on_two_ranks(folder: Path) -> None:
    """One recipe for all: their overrides are the same words."""
    recipe = "several_pictures"
    assert run_ranks(run, 2, words(folder, recipe, f"full-{recipe}", FULL)) == [0, 0]
    assert (folder / f"full-{recipe}/DONE").exists()


def fine_tuned(folder: Path, *options: str) -> list[float]:
    """The losses of examples/finetune/with_transformers.py on four rows; what it saves answers."""
    rows = [
        {"image": f"{name}.png", "question": f"{word} bright?", "answer": answer}
        for name, answer in (("a", "dark"), ("b", "it is bright"))
        for word in ("how", "is it very")
    ]
    (folder / "pictures/four.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = folder / f"trainer{''.join(options)}"
    script = load_script("examples/finetune", "with_transformers")
    line = [str(folder / "released"), str(folder / "pictures/four.jsonl"), str(out)]
    logged = script.main([*line, "--epochs", "6", "--batch", "2", "--lr", "1e-2", *options])
    answerer = load(str(out))
    prompt = answerer.builder.prompt([np.full((30, 40, 3), 20, np.uint8)], "how bright?", "user_qa")
    assert answerer.answer([prompt], Options(max_new_tokens=3))[0]
    return [line["loss"] for line in logged if "loss" in line]


@pytest.mark.parametrize("options", [(), ("--lora",)])
def test_with_transformers_trainer(folder: Path, options: tuple[str, ...]) -> None:
    losses = fine_tuned(folder, *options)
    assert len(losses) == 12 and sum(losses[-2:]) < sum(losses[:2])  # each epoch has all rows


def test_trainer_sees_the_tokens_of_our_training(folder: Path) -> None:
    """Two rows of unlike length: prompts as ours, then answer and end, of which alone something is learnt."""
    script = load_script("examples/finetune", "with_transformers")
    processor = AutoProcessor.from_pretrained(folder / "released", trust_remote_code=True)
    asked = {"how bright?": "dark", "is it very bright?": "it is bright"}
    rows = [{"image": "a.png", "question": one, "answer": said} for one, said in asked.items()]
    batch = script.Collator(processor, folder / "pictures")(rows)
    builder = load(str(folder / "released")).builder
    picture = np.full((30, 40, 3), 20, np.uint8)
    for i, (one, said) in enumerate(asked.items()):
        there = batch["attention_mask"][i] == 1
        ids = batch["input_ids"][i][there]
        learnt = batch["labels"][i][there] != script.IGNORED
        prompt = builder.prompt([picture], one, "user_qa").input_ids
        assert ids[~learnt].tolist() == prompt.tolist()
        assert ids[learnt].tolist() == [
            *builder.tokenizer.encode(f" {said}"),
            builder.tokenizer.eos,
        ]
        assert (batch["labels"][i][~there] == script.IGNORED).all()


@pytest.mark.skipif(
    importlib.util.find_spec("trl") is None,
    reason="trl is not installed: pip install --no-deps --target DIR trl, and PYTHONPATH=DIR for this test",
)
def test_with_trl(folder: Path) -> None:
    """The same rows, collator and losses, step by step, by TRL's trainer."""
    np.testing.assert_allclose(fine_tuned(folder, "--trl"), fine_tuned(folder), rtol=1e-4)
