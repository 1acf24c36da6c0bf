"""Made-up shards: what a recipe asks for is there, in its styles, the same every time, and true."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from molmo_ds.config import PromptConfig
from molmo_ds.data import sources
from molmo_ds.data.decode import load_image
from molmo_ds.data.made_up.film import SECONDS, make_film
from molmo_ds.data.made_up.rows import EVALUATED, TRAIN
from molmo_ds.data.made_up.scene import CELL, COLOURS, GROUNDS, draw_scene
from molmo_ds.data.made_up.sets import SETS
from molmo_ds.data.made_up.write import write_made_up
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.tokens import Tokenizer
from molmo_ds.data.video import frames_at
from molmo_ds.eval.listing import shards_of
from molmo_ds.eval.sets import resolve
from molmo_ds.rehearse.needs import data_folders
from molmo_ds.rehearse.recipe import find, own_model
from molmo_ds.rehearse.stages import ENDINGS

ROOT = Path(__file__).parents[2]
STYLES = {  # of the training sets: what the reference's classes give them
    "pixmo_cap": {"long_caption"},
    "pixmo_cap_with_transcripts": {"long_caption", "transcript"},
    "pixmo_transcript": {"transcript"},
    "pixmo_cap_qa": {"synthetic_qa"},
    "pixmo_cap_qa_as_user_qa": {"user_qa"},
    "pixmo_ask_model_anything": {"user_qa"},
    "pixmo_pointing_explanations": {"point_qa"},
    "pixmo_points": {"pointing"},
    "pixmo_points_counting": {"point_count"},
    "pixmo_points_train": {"pointing", "point_count"},
    "pixmo_points_high_freq": {"pointing"},
    "pixmo_points_high_freq_counting": {"point_count"},
    "pixmo_points_high_freq_train": {"pointing", "point_count"},
    "pixmo_count": {"pointing"},
    "pixmo_count_counting": {"point_count"},
    "pixmo_clocks": {"clocks"},
    "coco_2014_vqa_multi": {"vqa2"},
    "chart_qa_weighted": {"chart_qa"},
    "ai2_diagram_v2_mix_transparent": {"ai2_diagram", "ai2_diagram_no_letter"},
    "science_qa_img": {"science_qa"},
    "tulu4": {"text_sft"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "up"
    write_made_up(folder, 2, 5)
    return folder


def annotations(folder: Path) -> list[dict]:
    shards = ShardSet(str(folder))
    found = []
    for number in range(len(shards)):
        for one in shards.record(number)["annotations"]:
            found += one.get("one_of", [one])
    return found


def test_every_folder_that_a_mixture_names_is_made() -> None:
    made = {f"{name}-train" for name in TRAIN} | {f"{n}-{split}" for n, split in EVALUATED}
    asked = set()
    for name in ("3.2-synthetic", "3.2-synthetic-2025", "pointing", "small1", "small2", "android"):
        recipe = yaml.safe_load((ROOT / "examples/multitask" / f"{name}.yaml").read_text())
        asked |= {Path(one["path"]).name for one in recipe["data"]["sources"].values()}
        for evaluator in recipe["evaluators"].values():
            [(task, split)] = resolve(evaluator["task"])
            asked.add(shards_of(task, split, Path("data")).name)
    assert len(asked) > 40
    assert asked <= made


def test_styles_are_those_of_each_data_set(made: Path) -> None:
    for name in TRAIN:
        found = {one["style"] for one in annotations(made / f"{name}-train")}
        kind = name.removeprefix("pixmo_docs_")
        expected = {f"pixmo_docs_{kind}"} if kind != name else {name}
        assert found == STYLES.get(name, expected), name


def test_all_can_be_learnt_and_is_noted_as_made_up(made: Path) -> None:
    formatter = PromptFormatter(PromptConfig())
    words = Tokenizer(made / "tokenizer", 1024)
    pictures = 0
    for folder in sorted(made.glob("*-*")):
        note = json.loads((folder / "report.json").read_text())
        shards = ShardSet(str(folder))
        assert (note["made up"], note["records"]) == (True, len(shards))
        for number in range(len(shards)):
            record = shards.read(number)
            pictures += len(record["pixels"])
            for pixels in record["pixels"]:
                assert load_image(pixels).shape[2] == 3
            if folder.name.endswith("-train"):
                size = record["sizes"][0] if record["sizes"] else None
                rng = np.random.RandomState(0)
                talks = formatter.conversations(record["annotations"], rng, size)
                text = "".join(text for talk in talks for text in talk.messages)
                assert words.decode(words.encode(text)) == text
    assert pictures > 100
    assert ShardSet(str(made / "tulu4-train")).read(0)["pixels"] == []


def test_the_same_seed_makes_the_same_bytes(made: Path, tmp_path: Path) -> None:
    write_made_up(tmp_path / "again", 2, 5)
    files = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    assert len(files) > 200
    for path in files:
        assert (made / path).read_bytes() == (tmp_path / "again" / path).read_bytes(), path
    with pytest.raises(ValueError, match="is there already"):
        write_made_up(made, 2, 5)


def test_points_lie_on_what_they_name(made: Path) -> None:
    shards = ShardSet(str(made / "pixmo_count-train"))
    for number in range(len(shards)):
        record = shards.read(number)
        pixels = load_image(record["pixels"][0]).astype(int)
        [asked] = record["annotations"]
        colour = COLOURS[asked["label"].split()[0]]
        for x, y in asked["points"]:
            assert abs(pixels[int(y), int(x)] - colour).max() < 30  # JPEG


def test_a_scene_says_what_it_shows() -> None:
    scene = draw_scene(np.random.RandomState(3))
    counted = re.findall(r"(\d+) (\w+ \w+)", scene.caption().split("Below")[0])
    assert {label: int(count) for count, label in counted} == {
        label: len(places) for label, places in scene.places().items()
    }
    image = scene.draw()
    assert image.getpixel((image.width - 1, CELL * 4 - 1)) == GROUNDS[scene.ground]
    answers = dict(scene.questions())
    assert answers["Which word is on the sign?"] == scene.word
    label = next(iter(scene.places()))
    assert answers[f"How many {label}s are there?"] == str(len(scene.percent(label)))


def test_names_are_those_of_sources() -> None:
    assert set(TRAIN) <= set(sources.ALL)
    assert {name for name, _ in EVALUATED} <= set(sources.ALL)


@pytest.fixture(scope="module")
def of_molmo2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made_molmo2")
    write_made_up(folder, 2, 5, "molmo2")
    return folder


@pytest.mark.parametrize("family", ["molmo2", "hemolmo"])
def test_what_the_recipes_of_a_family_read_is_made_and_no_more(family: str) -> None:
    """What is written goes through each set's own adapter: `write_made_up` fails where one drops a row."""
    made = {f"{name}-{split}" for name, split in (*SETS[family].pictures, *SETS[family].videos)}
    read = set()
    for stage in find(own_model(family), None, ROOT / "examples"):
        read |= {Path(path).name for path in data_folders(stage.load(("out=x",)))}
    for task, split in resolve(ENDINGS[family].asked) if ENDINGS[family].asked else ():
        read.add(shards_of(task, split, Path("data")).name)
    assert made == read
    assert len(made) > 15


def test_films_show_what_is_said_of_them(of_molmo2: Path) -> None:
    """Points of a track lie on a thing of the colour that it names; of hidden things nothing is shown."""
    hidden = 0
    points = 0
    for name in ("molmo2_track", "lasot_single_point_track"):
        shards = ShardSet(str(of_molmo2 / f"{name}-train"))
        for number in range(len(shards)):
            record = shards.read(number)
            assert record["durations"] == [SECONDS]
            [asked] = record["annotations"]
            colour = COLOURS[asked["label"].split()[1]]
            times = [moment["time"] for moment in asked["tracks"]]
            frames = frames_at(record["pixels"][0], times)
            for moment, frame in zip(asked["tracks"], frames):
                for thing, (x, y) in moment["points"].items():
                    hidden += thing in moment["hidden"]
                    if thing not in moment["hidden"]:
                        points += 1
                        near = abs(frame[int(y), int(x)].astype(int) - colour).max()
                        assert near < 60 or len(moment["points"]) > 1  # one may cover another
    assert points > 10 and hidden > 0


def test_annotations_of_videos_have_the_styles_of_their_sets(of_molmo2: Path) -> None:
    styles = {
        "molmo2_cap": {"video_merged_caption", "video_short_caption", "video_long_caption"},
        "molmo2_video_subtitle_qa": {"video_multiple_choice"},
        "molmo2_ask_model_anything": {"user_qa"},
        "tgif": {"video_multiple_choice", "video_short_answer"},
        "tvqa_with_sub": {"video_multiple_choice_w_subtitle"},
        "llava_video_oe_academic": {"video_short_answer"},
        "cinepile_with_sub": {"video_multiple_choice_w_subtitle"},
        "star": {"video_multiple_choice", "video_short_answer"},
        "molmo2_video_point_minmax_26_60": {"video_point", "video_point_count"},
        "academic_points_clip_63s_2fps": {"video_point", "video_point_count"},
        "molmo2_track": {"video_point_track_per_frame"},
        "mevis_ground": {"video_point_ground_start_end"},
        "tnllt_single_point_track": {"video_single_point_track_per_frame"},
    }
    for name, wanted in styles.items():
        assert {one["style"] for one in annotations(of_molmo2 / f"{name}-train")} == wanted, name
    several = ShardSet(str(of_molmo2 / "pixmo_multi_points-train")).read(1)
    assert len(several["pixels"]) == 3
    counts = [
        sum(len(group["points"]) for group in one["point_groups"])
        for least in ("0_5", "6_25", "26_60")
        for one in annotations(of_molmo2 / f"molmo2_video_point_minmax_{least}-train")
    ]
    assert min(counts) == 0 and max(counts) > 25
    assert ShardSet(str(of_molmo2 / "molmo2_video_subtitle_qa-train")).record(0)["subtitles"]


def test_the_same_seed_makes_the_same_films() -> None:
    first = make_film(3, 1)[1]
    make_film.cache_clear()
    assert make_film(3, 1)[1] == first
    assert make_film(4, 1)[1] != first
