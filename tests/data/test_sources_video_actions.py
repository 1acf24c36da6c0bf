"""Academic sets about videos in their publishers' layouts, through tools/download.py to shards and back.

academic_videos.json holds what the classes of allenai/molmo2 f3cb108 (olmo/data/academic_video_datasets.py) gave for
these very files on 2026-11-30: of each record its clip and messages. Questions that a class draws from its own
sentences are not in it; those of qv_highlights are ours.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from academic_video_files import VIDEO, WRITERS, Files
from source_helpers import run

from molmo_ds.config import PromptConfig
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.sample.review import Review
from molmo_ds.data.sources import ALL
from molmo_ds.data.sources.source import LeftOut
from molmo_ds.data.wording.actions import ACTION_TEMPLATES

GIVEN = json.loads((Path(__file__).parent / "academic_videos.json").read_text(encoding="utf-8"))
LENGTHLESS = "segment without a length"
DROPPED = {
    "intent_qa": {"answer that is none of the options": 1},
    "video_localized_narratives": {"no usable annotation": 1},
    "camerabench_qa": {"no usable annotation": 1},
    "ego4d_all": {"video that Ai2 found damaged": 1},
    "moments_in_time_qa": {
        "label that says that a child or an adult makes a sound": 1,
        "picture file missing": 1,
    },
    "kinetics_qa": {"video that Ai2 found damaged": 1, "picture file missing": 1},
    "charades_sta_all_qa": {LENGTHLESS: 1, "picture file missing": 1},
    "coin_all_qa": {
        LENGTHLESS: 2,
        "part of a video that Ai2 found damaged": 1,
        "picture file missing": 2,
    },
    # each step is a row of its part and one of the whole video
    "youcook2_all_qa": {LENGTHLESS: 2, "part of a video that Ai2 found damaged": 1},
    "activitynet_all_qa": {LENGTHLESS: 1},
    "epic_kitchens_qa": {"video that Ai2 found damaged": 1, "picture file missing": 1},
    "qv_highlights": {"query of more than 5 parts": 1, "picture file missing": 1},
}


def build(folder: Path, name: str, split: str = "train", *options: str) -> list[dict]:
    """Run the tool on FOLDER/NAME and read its shards back; every record can be used."""
    argv = [name, "--from", str(folder), "--out", str(folder / "out"), "--split", split]
    assert run(folder, *argv, "--attempts", "1", *options) == 0
    shards = ShardSet(str(folder / "out" / f"{name}-{split}"))
    records = [shards.read(i) for i in range(len(shards))]
    for record in records:
        Review().add(record)
    return records


def report(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "out" / f"{name}-train/report.json").read_text())


def written(folder: Path, name: str) -> list[dict]:
    """The records of a set whose files were written for it."""
    (folder / name).mkdir()
    WRITERS[name](Files(folder / name))
    return build(folder, name)


def says(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether an annotation is a message of the reference, or may become it.

    Wrong options keep their order; where the right one stands is drawn there in CameraBench.
    """
    if "one_of" in ours:
        return any(says(one, theirs) for one in ours["one_of"])
    if "options" not in theirs:
        return ours == theirs
    pairs = [(one["options"][one["answer_index"]], list(one["options"])) for one in (ours, theirs)]
    for right, options in pairs:
        options.remove(right)
    return pairs[0] == pairs[1] and ours["question"] == theirs["question"]


@pytest.mark.parametrize("name", WRITERS)
def test_messages_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    records = written(tmp_path, name)
    ours = {json.dumps([r.get("clip"), i]): r["annotations"] for i, r in enumerate(records)}
    assert len(records) == len(GIVEN[name])
    for clip, messages in GIVEN[name]:
        clip = clip and [float(time) for time in clip]
        key = next(
            key
            for key, found in ours.items()
            if json.loads(key)[0] == clip
            and len(found) == len(messages)
            and all(says(*pair) for pair in zip(found, messages))
        )
        del ours[key]
    assert report(tmp_path, name)["dropped"] == DROPPED.get(name, {})
    assert all(record["pixels"] == [VIDEO] for record in records)


@pytest.mark.parametrize("style", ACTION_TEMPLATES)
def test_sentences_of_our_own_ask_after_the_style(style: str) -> None:
    config = PromptConfig(
        prompt_templates="uber_model_v2", message_format="chat", system_prompt="demo_or_style_v2"
    )
    annotation = {"style": style, "label": "cat"}
    annotation |= {"text": "x"} if style == "video_object_caption" else {"answer": "x"}
    rng = np.random.RandomState(0)
    asked = {PromptFormatter(config).messages(annotation, rng)[0] for _ in range(200)}
    sentences = {f"{style}: {one.format(label='cat')}" for one in ACTION_TEMPLATES[style]}
    assert asked == sentences


def test_a_step_in_a_whole_video_is_asked_for_by_its_style_alone() -> None:
    config = PromptConfig(
        prompt_templates="uber_model_v2", message_format="chat", system_prompt="demo_or_style_v2"
    )
    style = "video_clip_short_caption_start_end"
    messages = PromptFormatter(config).messages(
        {"style": style, "text": "fry it."}, np.random.RandomState(0)
    )
    assert messages == [f"{style}:", "fry it."]


def test_options_and_labels_stand_where_the_question_puts_them(tmp_path: Path) -> None:
    [record] = written(tmp_path, "camerabench_qa")
    [asked] = record["annotations"]
    assert asked["options"][asked["answer_index"]] == "It pans left."
    [asked] = written(tmp_path, "road_text_vqa")[0]["annotations"][1:]
    assert [one["answer"] for one in asked["one_of"]] == ["Main St", "Main"]
    [one, other] = written(tmp_path, "countix_oe")
    assert one["annotations"][0]["question"] == "How many push ups?"
    assert len(other["annotations"][0]["one_of"]) == 2


def test_what_the_reference_learns_of_a_validation_part_is_counted(tmp_path: Path) -> None:
    """ActivityNet's labels: the reference does not ask which part of the set a video belongs to."""
    written(tmp_path, "activitynet_all_qa")
    held = "records of a part that the set's publishers keep for validation"
    assert report(tmp_path, "activitynet_all_qa")["changed"] == {held: 1}


def test_a_label_comes_once_in_a_part(tmp_path: Path) -> None:
    to = Files(tmp_path / "activitynet_all_qa")
    WRITERS["activitynet_all_qa"](to)
    told = [{"segment": [0.25, 1.5], "label": label} for label in ("Tai chi", "Zumba", "Tai chi")]
    to.json("activity_net.v1-3.min.json", {"database": {"v": {"subset": "training"}}})
    database = {"v": {"subset": "training", "annotations": told}}
    to.json("activity_net.v1-3.min.json", {"database": database})
    to.videos("all-videos/v/v.mp4")
    records = build(tmp_path, "activitynet_all_qa")
    labels = [[one["answer"] for one in record["annotations"]] for record in records]
    assert labels == [["Tai chi", "Zumba"], ["no"], ["2"]]
    dropped = report(tmp_path, "activitynet_all_qa")["dropped"]
    assert dropped == {"label that its part of the video has already": 1}


def test_other_layouts_of_the_same_sets(tmp_path: Path) -> None:
    """Moments in Time as its publishers unpack it, Oops with folders of its parts, Ego4D's parquet file."""
    to = Files(tmp_path / "moments_in_time_qa")
    to.lines(
        "trainingSet.csv", ["running/0.mp4,running,3,1", "child+singing/1.mp4,child+singing,3,0"]
    )
    to.videos("training/running/0.mp4", "training/child+singing/1.mp4")
    [record] = build(tmp_path, "moments_in_time_qa")
    assert record["annotations"][0]["answer"] == "running"

    to = Files(tmp_path / "video_localized_narratives")
    WRITERS["video_localized_narratives"](to)
    home = to.folder / "oops/oops_video"
    (home / "train").mkdir()
    [video] = home.glob("*.mp4")
    video.rename(home / "train" / video.name)
    assert len(build(tmp_path, "video_localized_narratives")) == 1

    to = Files(tmp_path / "ego4d_all")
    WRITERS["ego4d_all"](to)
    table = to.folder / "ego4d_cached_train_metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    table.unlink()
    to.parquet([{**row, "uid": "dd08bc58", "start": 347.6} for row in rows], table.stem)
    [record] = build(tmp_path, "ego4d_all")
    assert record["annotations"] == GIVEN["ego4d_all"][0][1]


def test_held_out_splits_ask_each_question_alone(tmp_path: Path) -> None:
    to = Files(tmp_path / "coin_all_qa")
    WRITERS["coin_all_qa"](to)
    records = build(tmp_path, "coin_all_qa", "test")
    assert [record["annotations"][0]["answer"] for record in records] == [
        "unscrew the screw",
        "remove the tire",
    ]
    to = Files(tmp_path / "youcook2_all_qa")
    WRITERS["youcook2_all_qa"](to)
    assert len(build(tmp_path, "youcook2_all_qa", "validation")) == 4


def test_cells_that_a_table_reader_takes_for_empty_are_words(tmp_path: Path) -> None:
    """`None` is what somebody answered; pandas, by which the reference reads the table, makes it NaN."""
    to = Files(tmp_path / "intent_qa")
    WRITERS["intent_qa"](to)
    table = to.folder / "train.csv"
    table.write_text(table.read_text().replace("greet", "None"))
    first = build(tmp_path, "intent_qa")[0]
    assert first["annotations"][0]["answer"] == "None"


def test_rows_that_lack_what_is_learnt() -> None:
    row = {"question": "?", "answer": [], "video": "v", "questionId": 1}
    with pytest.raises(LeftOut, match="without an answer"):
        ALL["road_text_vqa"].adapt(row, "train")
    none = {"id": "1", "video": "v.mp4", "captions": [], "actor_names": []}
    assert ALL["video_localized_narratives_caption"].adapt(none, "train") == []
    assert ALL["ego4d_all"].adapt({"clip": "c", "message_list": []}, "train") == []


def test_a_missing_file_says_what_to_fetch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in WRITERS:
        (tmp_path / name).mkdir()
        argv = [name, "--from", str(tmp_path), "--out", str(tmp_path / "out")]
        assert run(tmp_path, *argv) == 1
        said = capsys.readouterr().err
        assert "is missing" in said and "DIR" in said, said
