"""Before a launch: what is missing, how it is fetched, and what a run costs; the rehearsal's pieces."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from molmo_ds import presets, settings
from molmo_ds.cli import rehearse as command
from molmo_ds.config import DataConfig, EvaluatorConfig, RunConfig, SourceConfig
from molmo_ds.data import sources
from molmo_ds.data.made_up.write import write_made_up
from molmo_ds.eval.sets import resolve
from molmo_ds.model.flops import flops_per_token
from molmo_ds.model.molmo import Molmo
from molmo_ds.rehearse import needs, stages
from molmo_ds.rehearse.figures import cost_of, first_pass, steps_of
from molmo_ds.rehearse.reading import read_all
from molmo_ds.rehearse.recipe import STAGES, examples_folder, find
from molmo_ds.testing import run_files
from molmo_ds.testing.first_step import first_steps

MODELS = ("molmo_7b_o", "molmoe_1b")


def tiny(tmp_path: Path) -> RunConfig:
    return settings.load(None, [*run_files.make(tmp_path), f"out={tmp_path / 'run'}"])


def test_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    shards = config.data.sources["grey"].path
    need = needs.data_need(shards)
    assert need.there and need.found == f"40 samples in {shards}"
    assert needs.tokenizer_need(config, "fetch").there
    assert needs.weights_need(config, "fetch").there  # random
    started = dataclasses.replace(config, init_from=str(tmp_path / "nowhere"))
    assert not needs.weights_need(started, "fetch").there
    empty = dataclasses.replace(config.data, tokenizer=str(tmp_path / "nowhere"))
    lost = needs.tokenizer_need(dataclasses.replace(config, data=empty), "fetch")
    assert (lost.there, lost.fetch) == (False, "fetch")
    assert not needs.data_need(str(tmp_path / "nowhere")).there
    note = Path(shards) / "report.json"
    note.write_text(json.dumps({"made up": True}))
    made_up = needs.data_need(shards)
    assert not made_up.there and "is made up" in made_up.found
    note.write_text(json.dumps({"source": "grey"}))
    assert needs.data_need(shards).there
    next(Path(shards).glob("*.tar")).write_bytes(b"cut")
    assert not needs.data_need(shards).there


def test_a_folder_of_an_earlier_meaning_does_not_count(tmp_path: Path) -> None:
    run_files.make(tmp_path)
    folder = tmp_path / "pixmo_count-train"
    (tmp_path / "shards").rename(folder)
    note = folder / "report.json"
    note.write_text(json.dumps({"records": 40}))
    assert "until 2026-11-29 it counted here" in needs.data_need(str(folder)).found
    note.write_text(json.dumps({"records": 40, "source": "pixmo_count"}))
    assert needs.data_need(str(folder)).there


def test_folders_of_sources_and_evaluators() -> None:
    data = DataConfig(sources={"a": SourceConfig(path="d/a-train"), "b": SourceConfig(path="x")})
    evaluators = {
        "one": EvaluatorConfig(path="d/a-train"),
        "two": EvaluatorConfig(task="chart_qa:validation", data_folder="d"),
    }
    config = RunConfig(data=data, evaluators=evaluators)
    assert needs.data_folders(config) == ["d/a-train", "x", "d/chart_qa-validation"]


def test_commands_that_fetch() -> None:
    wanted = [
        f"data/{name}"
        for name in (
            *("pixmo_cap-train", "pixmo_cap-validation", "pixmo_points-train", "chart_qa-train"),
            *("chart_qa-validation", "tally_qa-train", "tally_qa-test", "mine"),
        )
    ]
    by_hand = sources.get("tally_qa").by_hand
    assert needs.downloads(wanted[1:], wanted) == [
        "python tools/download.py pixmo_cap --out data --hold-out 2048",
        "python tools/download.py pixmo_points chart_qa --out data",
        "python tools/download.py chart_qa --out data --split validation",
        f"python tools/download.py tally_qa --out data --from DIR    # {by_hand}",
        "python tools/download.py tally_qa --out data --split test --from DIR    # its folder of tally_qa, as above",
        "python tools/make_shards.py ... data/mine    # your own data: docs/guides/data.md",
    ]
    # a validation split that is published is not held out
    assert needs.downloads(["data/chart_qa-train"], wanted) == [
        "python tools/download.py chart_qa --out data"
    ]
    assert needs.downloads([], wanted) == []
    # videos are the user's; one sentence for all sets of their kind, each named once
    videos = [f"data/{name}-train" for name in ("molmo2_cap", "lasot_single_point_track")]
    by_hand = sources.get("molmo2_cap").by_hand
    assert needs.downloads(2 * videos, 2 * videos) == [
        "python tools/download.py molmo2_cap lasot_single_point_track --out data"
        f" --from DIR    # {by_hand}"
    ]


def test_paths_and_sentences_may_hold_braces() -> None:
    by_hand = sources.get("tgif").by_hand
    assert "{" in by_hand
    assert needs.downloads(["a{b}/tgif-train", "a{b}/mine"], []) == [
        f"python tools/download.py tgif --out a{{b}} --from DIR    # {by_hand}",
        "python tools/make_shards.py ... a{b}/mine    # your own data: docs/guides/data.md",
    ]


def test_every_recipe_of_molmo2_says_how_its_sets_are_fetched() -> None:
    """Of all three files, as the check prints it: each set once."""
    for stage in ("pretrain", "sft", "long_context"):
        config = settings.load(examples_folder() / f"molmo2/{stage}.yaml", [])
        wanted = [source.path for source in config.data.sources.values()]
        commands = needs.downloads(wanted, wanted)
        named = [word for line in commands for word in line.partition(" --out ")[0].split()[2:]]
        assert sorted(named) == sorted(config.data.sources), stage


def test_the_command_that_makes_the_first_weights() -> None:
    assert set(needs.LANGUAGE_MODELS) <= set(presets.PRESETS)
    for model in OTHERS:
        [first, *later] = find(model, None, examples_folder())
        config = first.load(("out=x",))
        said = needs.backbones(config.preset, config.init_from)
        assert f"--llm {model}={needs.LANGUAGE_MODELS[model]} --vision siglip2=google/sig" in said
        assert said.endswith(f"weights/{model}-siglip2")
        assert config.data.tokenizer == f"{config.init_from}/tokenizer"
        for stage in later:
            run = stage.load(("out=x",))
            assert (run.preset, run.data.tokenizer) == (config.preset, config.data.tokenizer)
    assert set(needs.TOWERS) == set(presets.TOWERS)
    assert needs.backbones("olmo2_7b/siglip", "out") == (
        "python tools/convert.py backbones --llm olmo2_7b=allenai/OLMo-2-1124-7B"
        " --vision siglip=google/siglip-so400m-patch14-384 out"
    )


def test_costs_are_counted_from_shapes(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    cost = cost_of(config, 4)
    network = Molmo(config.model)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    assert cost.parameters == sum(sizes.values())
    # the base embedding is frozen by default
    assert cost.trained == cost.parameters - sizes["embed.embedding"]
    assert cost.positions == 4 * 4 * 160
    assert cost.crops == 4 * 4 * 6
    assert cost.export_bytes == sum(
        p.numel() * torch.bfloat16.itemsize for p in network.parameters()
    )
    # an hour of one GPU at half of a peak of as many operations in half an hour
    assert cost.gpu_hours(0.5, cost.operations / 1800) == pytest.approx(1.0)
    assert cost_of(config, 8).operations == 2 * cost.operations
    epochs = dataclasses.replace(config, epochs=4.0, global_batch=128)
    assert steps_of(epochs, False)[0] == 21878  # of the reference, for 700,000 captions
    assert steps_of(config, True) == (4, "max_steps")


def test_room_on_the_disk(tmp_path: Path) -> None:
    out = str(tmp_path / "not" / "yet")
    assert needs.disk_need(out, 1000, 2).there
    need = needs.disk_need(out, 10**15, 2)
    assert not need.there and "3,000,000.0 GB wanted for 2 + 1 checkpoints" in need.found


@pytest.mark.parametrize("model", MODELS)
def test_the_overlays_fit_every_recipe(model: str, tmp_path: Path) -> None:
    for stage in find(model, "3.2-synthetic", examples_folder()):
        files = [str(file) for file in (*stage.files, stage.debug)]
        words = stages.overrides(stage)
        config = settings.load(files, ["out=x", "init_from=null", *words])
        real = stage.load(("out=x",))
        assert config.data.sources.keys() == real.data.sources.keys()
        assert config.data.group_rates == real.data.group_rates
        assert config.model.text.qk_norm == real.model.text.qk_norm
        assert (config.model.text.num_experts > 0) == (real.model.text.num_experts > 0)
        assert config.max_steps <= 20
        assert config.evaluators.keys() == real.evaluators.keys()
        assert all(one.examples <= 8 for one in config.evaluators.values())
        assert stages.other_strategy(stage, tmp_path) == ""
        four = dataclasses.replace(stage, debug=tmp_path / "tp.yaml")
        four.debug.write_text(stage.debug.read_text() + "strategy: ds_configs/pipe_zero1_ep.json\n")
        assert stages.other_strategy(four, tmp_path) == "ds_configs/zero3.json"


def test_both_stages_take_a_step_on_made_up_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The overlays over the recipe's own files, on one rank; the command does more of it, on two."""
    write_made_up(tmp_path, 2, 0)
    monkeypatch.setenv("MOLMO_DATA_DIR", str(tmp_path))
    small = ["out=x", "init_from=null", "global_batch=2", "micro_batch=2", "data.num_workers=0"]
    runs = {
        stage.name: settings.load(
            [str(file) for file in (*stage.files, stage.debug)],
            [*small, *stages.overrides(stage)],
        )
        for stage in find("molmoe_1b", "3.2-synthetic", examples_folder())
    }
    assert len(runs) == 2
    for step in first_steps(runs).values():
        # of a random model, over its words
        assert step.loss == pytest.approx(math.log(1024), rel=0.2)
        assert step.learnt_tokens > 10


OTHERS = ("molmo2_8b", "molmo2_4b", "molmo2_o_7b", "hemolmo_7b_d")


@pytest.mark.parametrize("model", OTHERS)
def test_the_overlays_fit_the_recipes_of_other_families(model: str, tmp_path: Path) -> None:
    """The small model is of the kind of the real one, and its data, prompts and strategy are the recipe's."""
    found = find(model, None, examples_folder())
    assert [stage.name for stage in found] == [*STAGES[presets.get(model).family]]
    for stage in found:
        config = stages.debug_config(stage, tmp_path)
        real = stage.load(("out=x",))
        assert real.model.text == dataclasses.replace(
            presets.get(model).text,
            residual_dropout=real.model.text.residual_dropout,
            response_residual_dropout=real.model.text.response_residual_dropout,
        )
        assert config.data.sources.keys() == real.data.sources.keys()
        assert config.data.group_rates == real.data.group_rates
        assert (config.data.prompts, config.data.packing) == (real.data.prompts, real.data.packing)
        assert config.strategy == real.strategy
        mine, theirs = config.model, real.model
        assert mine.family == theirs.family
        for key in stages.CONNECTOR:
            assert getattr(mine.connector, key) == getattr(theirs.connector, key), key
        for key in stages.KIND:
            assert getattr(mine.text, key) == getattr(theirs.text, key), key
        assert bool(mine.text.rope_scaling_layers) == bool(theirs.text.rope_scaling_layers)
        assert mine.images.legacy_image_mask is False and mine.images.crop_mode != "resize"
        assert mine.video.max_fps == theirs.video.max_fps
        assert mine.video.pooling_size == theirs.video.pooling_size
        assert config.max_steps <= 20 and config.global_batch <= stages.PICTURES
        assert config.evaluators.keys() == real.evaluators.keys()
        assert stages.other_strategy(stage, tmp_path) == ""
    chosen = config.model.selection
    if chosen is not None:
        assert dataclasses.replace(chosen, picks=128) == real.model.selection


def test_every_sample_of_a_recipe_is_read(tmp_path: Path) -> None:
    """HeMolmo's, which are few; a sample that teaches nothing is named."""
    write_made_up(tmp_path, 2, 0, "hemolmo")
    few = ["data.num_workers=0", "global_batch=2", "micro_batch=1"]
    runs = {}
    for stage in find("hemolmo_7b_d", None, examples_folder()):
        config = stages.debug_config(stage, tmp_path)
        runs[stage.name] = settings.changed(config, few)
    assert read_all(runs) == (8, 44)
    short = settings.changed(runs["questions"], ["data.sequence_length=24"])
    with pytest.raises(ValueError, match="questions: sample 0 of .* (cannot|teaches nothing)"):
        read_all({"questions": short})


def test_the_end_of_a_rehearsal(tmp_path: Path) -> None:
    """What each family evaluates, exports and is asked."""
    data = tmp_path / "made_up"
    write_made_up(data, 1, 0, "hemolmo")
    for model in ("molmo_7b_d", "molmo2_8b", "hemolmo_7b_d"):
        family = presets.get(model).family
        [*_, last] = find(model, None, examples_folder())
        run = stages.debug_config(last, data)
        words = dict(stages.endings(family, run, data, tmp_path, "RUN"))
        tasks = words["evaluate"][2 : words["evaluate"].index("--data")]
        assert len(resolve(tasks)) == {"molmo": 8, "molmo2": 7, "hemolmo": 2}[family]
        assert ("export" in words) == (family != "hemolmo")
        assert ("ask-video" in words) == (family == "molmo2")
        asked = words["ask"]
        assert Path(asked[asked.index("--image") + 1]).is_file()
        start = tmp_path / "export" if "export" in words else "RUN"
        assert asked[asked.index("--checkpoint") + 1] == str(start)


def test_the_first_pass_of_hemolmo_costs(tmp_path: Path) -> None:
    """Forward alone, over 14 x 14 windows of a low resolution with their column tokens, start and end."""
    [stage, _] = find("hemolmo_7b_d", None, examples_folder())
    config = stage.load(("out=x",))
    text = config.model.text
    tokens = 14 * 15 + 2
    layer = flops_per_token(config.model, tokens) / 6
    layer -= text.hidden_size * text.embedding_size
    assert first_pass(config) == pytest.approx(2 * tokens * layer)
    assert not cost_of(config, 1).exports
    assert "export" not in "".join(cost_of(config, 1).lines(0.2, 8))


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="those there are: .*molmo_7b_d"):
        find("molmo_7b", "3.2-synthetic", examples_folder())
    with pytest.raises(ValueError, match="There is no mixture .*3.2-synthetic"):
        find("molmo_7b_d", "3.1", examples_folder())
    with pytest.raises(ValueError, match="those there are: none"):
        find("molmo_7b_d", "3.2-synthetic", tmp_path)
    with pytest.raises(ValueError, match="molmo2_8b is trained by those of examples/molmo2; leave"):
        find("molmo2_8b", "3.2-synthetic", examples_folder())


def test_the_check_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOLMO_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(needs, "plan", lambda *_: [])  # of 8 billion parameters: tested elsewhere
    monkeypatch.setattr(
        needs, "memory_need", lambda *_: needs.Need("memory", True, "planned elsewhere")
    )
    assert command.main(["molmo_7b_d", "--only-check"]) == 1
    said = capsys.readouterr().out
    assert "21,878 steps (4 epochs of 700,000 captions, as the data is not there)" in said
    assert "30,000 steps (max_steps) of 256 sequences" in said
    assert "8.021 G parameters" in said  # 7.62 G of Qwen2-7B, and tower, connector, 128 rows
    assert f"pixmo_cap_with_transcripts pixmo_cap --out {tmp_path} --hold-out 2048" in said
    assert "backbones --llm molmo_7b_d=Qwen/Qwen2-7B --vision openai=openai/clip-vit" in said
    with pytest.raises(SystemExit):
        command.main(["molmo_7b_d", "--gpus", "0"])
    (tmp_path / "mine").touch()
    with pytest.raises(ValueError, match="holds other files"):
        command.main(["molmo_7b_d", "--out", str(tmp_path)])
