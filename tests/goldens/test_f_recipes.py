"""Mixtures, steps and whole runs of the reference's launch scripts against the recipes in examples/.

Mixtures and captioner_steps are compared whatever they hold; of a run every key that both have. What is not compared,
and why, is APART below.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from golden_files import MISSING, listed, read_json, skip_missing

from molmo_ds import presets, settings
from molmo_ds.config import ComponentConfig, DataConfig, RunConfig, SourceConfig
from molmo_ds.data.order.epochs import steps_of
from molmo_ds.data.order.mixture import sample_rates
from molmo_ds.eval.benchmarks import BENCHMARKS
from molmo_ds.model.families import molmo

EXAMPLES = Path(__file__).parents[2] / "examples"
MIXTURES = "F_recipes/mixtures.json"
RUNS = "F_recipes/runs.json"
PRESETS = {  # the reference's names of language models and towers
    "olmoe": "molmoe_1b",
    "olmo_1024_preview": "molmo_7b_o",
    "qwen2_7b": "molmo_7b_d",
    "qwen2_72b": "molmo_72b",
}
TOWERS = {"openai": "clip", "dinov2_large_336": "dinov2", "metaclip_l14_336": "metaclip"}
PARTS = {"connector": "connector", "vit": "vision", "llm": "text"}
APART = {
    "allow_resume": "the captioner's script has False; ours resume whenever the folder holds the same run",
    "data.shuffle_messages": "the script's loader is given data.shuffle in its place",
    "device_eval_batch_size": "a loss is taken of packed sequences, micro_batch of them at a time",
    "inf_evaluators.N.data.sequence_length": "an answer's prompt is as long as it is",
}
RECIPE_OF = {  # mixtures that a recipe has
    "3.2-synthetic/molmo-793fa38": "3.2-synthetic",
    "3.2-synthetic/published-table": "3.2-synthetic-paper",
    "3.2-synthetic/seed-6832f80": "3.2-synthetic-2025",
    "debug": "small1",
    "small2": "small2",
    "pretrain/molmo2-f3cb108": "../molmo2/pretrain",
}


def section(file: str, name: str) -> Any:
    """A part of a golden file; where another folder's file lacks it, the test is skipped with its name."""
    found = read_json(file)
    if name not in found:
        skip_missing(f"{MISSING}{file}:{name}")
    return found[name]


def close(rates: dict[str, float], wanted: dict[str, float]) -> None:
    """The same names, and the same rates to 1e-9."""
    assert rates == pytest.approx(wanted, rel=0, abs=1e-9)
    assert sum(rates.values()) == pytest.approx(1)


def mixture(name: str) -> dict[str, Any]:
    """One mixture of the golden folder."""
    return section(MIXTURES, "mixtures")[name]


@pytest.mark.parametrize("name", listed(MIXTURES, "mixtures"))
def test_rates_of_a_mixture(name: str) -> None:
    golden = mixture(name)
    sources = {
        member: SourceConfig(group=f"group {i}", size=size)
        for i, group in enumerate(golden["groups"])
        for member, size in group["members"].items()
    }
    rates = {f"group {i}": group["rate"] for i, group in enumerate(golden["groups"])}
    close(
        sample_rates(DataConfig(sources=sources, group_rates=rates), golden["sizes"]),
        golden["rates"],
    )


@pytest.mark.parametrize("name", [n for n in listed(MIXTURES, "mixtures") if n in RECIPE_OF])
def test_rates_of_its_recipe(name: str) -> None:
    golden = mixture(name)
    data = settings.load(EXAMPLES / "multitask" / f"{RECIPE_OF[name]}.yaml").data
    close(sample_rates(data, golden["sizes"]), golden["rates"])


def test_the_published_table() -> None:
    golden = section(MIXTURES, "mixtures").get("3.2-synthetic/published-table", {})
    if "table_percent" not in golden:
        skip_missing(f"{MISSING}{MIXTURES}:3.2-synthetic/published-table.table_percent")
    data = settings.load(EXAMPLES / "multitask/3.2-synthetic-paper.yaml").data
    rates = sample_rates(data, golden["sizes"])
    deviations = {
        names: abs(100 * sum(rates[name] for name in names.split("+")) - percent)
        for names, percent in golden["table_percent"].items()
    }
    assert max(deviations.values()) == pytest.approx(golden["table_largest_deviation"], abs=1e-4)


def test_steps_of_the_captioner() -> None:
    golden = section(RUNS, "captioner_steps")
    for row in golden["rows"]:
        known = dict(zip(golden["columns"], row))
        steps = steps_of(4, known["examples"], known["global_batch"])
        assert steps == known["max_duration"], known


def runs() -> list[tuple[str, str]]:
    """(part, name) of every run of the golden folder; those of debug are of a model that was made up for them."""
    parts = [name for name in listed(RUNS) if name.startswith(("captioner", "multitask"))]
    found = [(part, name) for part in parts for name in listed(RUNS, part)]
    return [(part, name) for part, name in found if "/" in name and not part.endswith("_debug")]


def recipe(part: str, name: str) -> RunConfig:
    """Our recipe of a run; another tower or language model is the override that the recipe's page names."""
    language, tower = name.rpartition(" ")[2].split("/")
    preset = PRESETS.get(language, language)
    whole = f"{preset}/{TOWERS.get(tower, tower)}"
    try:
        presets.get(whole)
    except ValueError:
        pytest.skip(f"there is no preset {whole}")
    words = [f"preset={whole}"]
    if part == "captioner":
        own = EXAMPLES / "captioner" / f"{preset}.yaml"
        # the script's rate; the paper's for 72B is another
        words += ["optim.text.lr=2e-5", "micro_batch=4"] if preset == "molmo_72b" else []
        return settings.load(
            own if own.is_file() else EXAMPLES / "captioner/molmo_7b_d.yaml", words
        )
    file = EXAMPLES / "multitask" / f"{part.removeprefix('multitask_')}.yaml"
    if not file.is_file():
        pytest.skip(f"no recipe is called {file.stem}")
    words += ["model.text.attention_dropout=0.1"] if preset == "molmoe_1b" else []
    return settings.load(file, words)


def nested(flat: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The keys below a prefix as dictionaries in each other."""
    out: dict[str, Any] = {}
    for key, value in flat.items():
        if key.startswith(prefix):
            *above, last = key.removeprefix(prefix).split(".")
            place = out
            for part in above:
                place = place.setdefault(part, {})
            place[last] = value
    return out


def component(ours: RunConfig, part: str) -> ComponentConfig:
    """The optimisation of the reference's connector, vit or llm."""
    return getattr(ours.optim, PARTS[part])


Reader = Callable[[RunConfig], Any]
KEYS: dict[str, Reader] = {  # a key of the reference -> what ours says of it
    "seed": lambda run: run.seed,
    "dry_run": lambda run: run.dry_run,
    "model.prompt_type": lambda run: run.data.prompts.prompt_templates,
    "model.message_formatting": lambda run: run.data.prompts.message_format,
    "model.system_prompt_kind": lambda run: run.data.prompts.system_prompt,
    "model.always_start_with_space": lambda run: run.data.prompts.always_start_with_space,
    "model.default_inference_len": lambda run: run.data.prompts.default_inference_len,
    "model.multi_annotation_weighting": lambda run: (
        "root_subsegments" if run.data.prompts.root_subsegments else None
    ),
    "data.shuffle": lambda run: run.data.prompts.shuffle_messages,
    "data.seed": lambda run: run.data.seed,
    "data.pad": lambda run: run.data.packing,
    "data.sequence_length": lambda run: run.data.sequence_length,
    "data.num_workers": lambda run: run.data.num_workers,
    "optimizer.name": lambda run: run.optim.name,
    "optimizer.metrics_log_interval": lambda run: run.log_interval,
    "console_log_interval": lambda run: run.log_interval,
    "scheduler.alpha_f": lambda run: run.optim.alpha_f,
    "scheduler.t_max": lambda run: run.optim.t_max,
    "scheduler.warmup_min_lr": lambda run: run.optim.warmup_min_lr,
    "scheduler.grad_clip_warmup_steps": lambda run: run.optim.grad_clip_warmup_steps or None,
    "ft_embedding": lambda run: "lm_head" if run.optim.freeze_embedding else "all",
    "global_train_batch_size": lambda run: run.global_batch,
    "device_train_microbatch_size": lambda run: run.micro_batch,
    "max_grad_norm": lambda run: run.optim.max_grad_norm,
    "softmax_auxiliary_loss_scale": lambda run: run.optim.z_loss,
    "save_interval": lambda run: run.save_interval,
    "save_num_checkpoints_to_keep": lambda run: run.keep_checkpoints,
    "save_overwrite": lambda run: run.overwrite,
    "stop_after": lambda run: run.stop_after,
    "time_limit": lambda run: run.time_limit_seconds,
    "wandb": lambda run: run.wandb,
    "compile": lambda run: "default" if run.compile else None,
    "activation_checkpointing": lambda run: {"full": "whole_layer"}[run.activation_checkpointing],
    **{
        key: read
        for part in PARTS
        for key, read in {
            f"ft_{part}": lambda run, part=part: not component(run, part).freeze,
            f"optimizer.{part}_learning_rate": lambda run, part=part: component(run, part).lr,
            f"optimizer.{part}_weight_decay": lambda run, part=part: (
                run.optim.weight_decay
                if component(run, part).weight_decay is None
                else component(run, part).weight_decay
            ),
            f"optimizer.{part}_betas": lambda run, part=part: list(
                component(run, part).betas or run.optim.betas
            ),
            f"optimizer.{part}_eps": lambda run, part=part: (
                component(run, part).eps or run.optim.eps
            ),
            f"scheduler.{part}_t_warmup": lambda run, part=part: component(run, part).warmup_steps,
        }.items()
    },
}


def compare_evaluators(ours: RunConfig, theirs: dict[str, Any]) -> None:
    """Names, data, intervals and numbers of examples of what is measured during training."""
    losses = {name: one for name, one in ours.evaluators.items() if not one.task}
    tasks = {name: one for name, one in ours.evaluators.items() if one.task}
    for prefix, found, interval in (
        ("evaluators.", losses, theirs["eval_interval"]),
        ("inf_evaluators.", tasks, theirs["inf_eval_interval"]),
    ):
        wanted = {one["label"]: one for one in nested(theirs, prefix).values()}
        assert set(found) == set(wanted)
        for name, one in wanted.items():
            assert (found[name].interval, found[name].at_end) == (interval, True), name
            assert found[name].examples == (one["max_examples"] or 2048), name
            data = f"{one['data']['dataset']}{'-' if prefix == 'evaluators.' else ':'}{one['data']['split']}"
            assert (found[name].task or found[name].path).rpartition("/")[2] == data, name
            if found[name].task:
                assert BENCHMARKS[one["data"]["dataset"]].max_new_tokens == one["max_new_tokens"]


@pytest.mark.parametrize(("part", "name"), runs() or [("missing F_recipes/runs.json", "")])
def test_a_run(part: str, name: str) -> None:
    golden = section(RUNS, part)
    theirs = golden["common"] | golden[name]
    ours = recipe(part, name)
    made = molmo.from_reference(nested(theirs, "model."))
    assert ours.model.connector == made.connector
    assert ours.model.images == made.images
    assert ours.model.vision == made.vision
    # the released models are read to 4096 tokens, whatever the language model saw
    assert ours.model.text == replace(made.text, max_position_embeddings=4096)
    compare_evaluators(ours, theirs)
    for key in KEYS.keys() & theirs.keys():
        assert KEYS[key](ours) == theirs[key], key
    if ours.epochs is None:
        assert ours.max_steps == theirs["max_duration"]
    else:
        steps = [row[4] for row in section(RUNS, "captioner_steps")["rows"]]
        assert theirs["max_duration"] in steps and ours.epochs == 4


# of a rehearsal: its size, so that it runs on a laptop, and rates at which a random model learns in ten steps
REHEARSED = {
    "ft_embedding",
    "data.sequence_length",
    "data.num_workers",
    "save_overwrite",
    "save_interval",
    "optimizer.metrics_log_interval",
    *(f"optimizer.{part}_learning_rate" for part in PARTS),
    *(f"scheduler.{part}_t_warmup" for part in PARTS),
}


@pytest.mark.parametrize(
    ("part", "first"),
    [("captioner_debug", "captioner/molmo_7b_d"), ("multitask_debug", "multitask/small1")],
)
def test_a_rehearsal_is_the_references_debug_run_made_smaller(part: str, first: str) -> None:
    golden = section(RUNS, part)
    theirs = golden.get("common", golden)
    stage = part.removesuffix("_debug")
    ours = settings.load([EXAMPLES / f"{first}.yaml", EXAMPLES / f"debug/{stage}.yaml"])
    other = {key for key in KEYS.keys() & theirs.keys() if KEYS[key](ours) != theirs[key]}
    assert other == REHEARSED
    labels = [
        one["label"]
        for prefix in ("evaluators.", "inf_evaluators.")
        for one in nested(theirs, prefix).values()
    ]
    assert set(ours.evaluators) == set(labels)
    assert ours.model.text.num_hidden_layers == theirs["model.n_layers"] == 1
    assert ours.model.vision.num_hidden_layers == theirs["model.vision_backbone.image_num_layers"]


@pytest.mark.parametrize("preset", PRESETS.values())
def test_published_rates_and_steps(preset: str) -> None:
    golden = section(RUNS, "published")
    first = settings.load(EXAMPLES / f"captioner/{preset}.yaml")
    overlays = [EXAMPLES / f"multitask/{name}.yaml" for name in ("3.2-synthetic", preset)]
    second = settings.load(overlays)
    third = settings.load([*overlays, EXAMPLES / "multitask/high_resolution.yaml"])
    one = golden["pretrain"]
    assert (first.global_batch, first.epochs) == (one["batch"], one["epochs"])
    parts = ("connector", "vision", "text")
    for part in parts:
        for run, wanted in (
            (first, one),
            (second, golden["finetune"]),
            (third, golden["high_resolution"]),
        ):
            made: ComponentConfig = getattr(run.optim, part)
            lr = wanted[f"lr.{part}"]
            assert made.lr == (lr[preset] if isinstance(lr, dict) else lr), (part, wanted)
            assert made.warmup_steps == wanted.get("warmup", wanted.get(f"warmup.{part}"))
    two = golden["finetune"]
    assert (second.global_batch, second.max_steps) == (two["batch"], two["steps"][preset])
    three = golden["high_resolution"]
    assert (third.global_batch, third.max_steps) == (three["batch"], three["steps"])
    assert third.model.images.max_crops == three["crops"]
