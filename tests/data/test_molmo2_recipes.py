"""Each recipe of Molmo2 takes a step: its settings, a tiny network, made-up shards with videos, pictures and text."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from molmo_ds import settings
from molmo_ds.config import RunConfig
from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.sources import ALL
from molmo_ds.testing.first_step import first_steps
from molmo_ds.testing.small_videos import film, png

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "examples/molmo2").glob("*.yaml"))
WORDS = ROOT / "tests/goldens/data/G_video/tokenizer/qwen3-tiny"
SMALL = (  # of what makes a network or a step large; everything else is the recipe's
    "preset=tiny_molmo2",
    "model.text.vocab_size=1024",
    "model.text.embedding_size=1024",
    "model.images.high_res_max_crops=6",
    "init_from=null",
    f"data.tokenizer={WORDS}",
    "data.sequence_length=768",
    "data.crops_per_sequence=24",
    "data.num_workers=0",
    "data.pool_size=8",
    "global_batch=2",
    "micro_batch=1",
    "max_steps=1",
    *(f"optim.{part}.warmup_steps=1" for part in ("connector", "vision", "text")),
    "strategy=ds_configs/zero1.json",
)
# group video of the reference in its order (f3cb108, launch_scripts/sft.py), by our names, with the sizes stated there
VIDEO_SETS: dict[str, int | None] = {
    **dict.fromkeys(("tgif", "tvqa_with_sub", "paxion"), 60_000),
    **dict.fromkeys(("llava_video_mc_academic", "llava_video_oe_academic", "perception_test")),
    **dict.fromkeys(("nextqa_mc", "news_video_qa_filtered", "how2qa", "sutd_trafficqa")),
    **dict.fromkeys(("social_iq2", "sportsqa_oe", "cinepile_with_sub", "clevrer", "funqa", "star")),
    **dict.fromkeys(("intent_qa", "video_localized_narratives", "road_text_vqa", "countix_oe")),
    **dict.fromkeys(("camerabench_qa", "motionbench_train")),
    **dict.fromkeys(("moments_in_time_qa", "kinetics_qa"), 60_000),
    **dict.fromkeys(("charades_sta_all_qa", "coin_all_qa", "youcook2_all_qa")),
    **dict.fromkeys(("activitynet_all_qa", "ego4d_all", "epic_kitchens_qa")),
    **dict.fromkeys(("video_localized_narratives_caption", "qv_highlights")),
    **dict.fromkeys(("molmo2_video_cap_qa", "molmo2_video_subtitle_qa")),
}
SAYS = {  # per stage: sequence, crops, batch, frames, learning rates of connector, vision and text
    "pretrain": (2536, 16, 128, 128, 2e-4, 6e-6, 2e-5),
    "sft": (16384, 128, 128, 128, 5e-6, 5e-6, 1e-5),
    "long_context": (36864, 384, 128, 384, 5e-6, 5e-6, 1e-5),
}


def records() -> Iterator[tuple[str, dict[str, bytes]]]:
    track = {"style": "video_point_track_per_frame", "question": "Track it.", "label": "it"}
    track["tracks"] = [{"time": t / 2, "points": {"a": [4 + t, 8]}} for t in range(3)]
    said = [[0.0, 1.0, "hello"]]
    for i in range(8):
        caption = {"style": "long_caption", "text": "A grey square."}
        video = {"images": ["mp4"], "annotations": [track], "subtitles": said}
        picture = {"images": ["png"], "annotations": [caption]}
        text = {"annotations": [{"style": "text_sft", "question": "Who?", "answer": "Me."}]}
        mp4 = film([125 * one for one in range(8 + i)])
        yield f"v{i}", {"mp4": mp4, "json": json.dumps(video).encode()}
        yield f"p{i}", {"png": png(i), "json": json.dumps(picture).encode()}
        yield f"t{i}", {"json": json.dumps(text).encode()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """Every recipe, small, with the same shards for every source."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(records(), folder)
    found = {}
    for path in [*RECIPES, ROOT / "examples/digits/video.yaml"]:
        names = settings.load(str(path)).data.sources
        paths = [f"data.sources.{name}.path={folder}" for name in names]
        found[path.stem] = settings.load(str(path), [*SMALL, *paths, f"out={folder / path.stem}"])
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_lengths_and_rates(path: Path) -> None:
    run = settings.load(str(path))
    data = run.data
    found = (data.sequence_length, data.crops_per_sequence, run.global_batch)
    found += (run.model.video.max_frames,)
    found += tuple(getattr(run.optim, part).lr for part in ("connector", "vision", "text"))
    assert found == SAYS[path.stem]
    assert set(data.sources) <= set(ALL)
    assert {source.group for source in data.sources.values()} == set(data.group_rates)
    assert run.model.text.image_attention == "image_tokens"


@pytest.mark.parametrize("stage", ["sft", "long_context"])
def test_sets_that_ask_about_videos_have_the_references_order_and_sizes(stage: str) -> None:
    sources = settings.load(str(ROOT / f"examples/molmo2/{stage}.yaml")).data.sources
    sizes = {name: one.size for name, one in sources.items() if one.group == "video"}
    assert list(sizes.items()) == [one for one in VIDEO_SETS.items() if one[0] in sizes]
    assert {"tgif", "star", "molmo2_video_cap_qa", "molmo2_video_subtitle_qa"} <= set(sizes)


def test_every_recipe_takes_a_step(runs: dict[str, RunConfig]) -> None:
    found = first_steps(runs)
    assert set(found) == {*SAYS, "video"}
    for step in found.values():
        assert math.isfinite(step.loss) and 3 < step.loss < 12 and step.crops > 4
