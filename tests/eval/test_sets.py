"""Names on the command line: sets, both spellings, splits, commas, repeats, and mistakes."""

import pytest

from molmo_ds.eval.set_table import SETS
from molmo_ds.eval.sets import published_crops, resolve


def named(*words: str) -> list[str]:
    return [f"{task.name}:{split}" for task, split in resolve(words)]


def test_commas_splits_and_repeats_in_order():
    found = named("chart_qa,doc_qa", "info_qa:test, chart_qa", "text_vqa:validation", "text_vqa")
    assert found == [
        "chart_qa:validation",
        "doc_qa:validation",
        "info_qa:test",
        "text_vqa:validation",
    ]
    # two, not one
    assert named("a_okvqa_mc", "a_okvqa_mc:test") == ["a_okvqa_mc:validation", "a_okvqa_mc:test"]
    assert resolve("chart_qa") == resolve(["chart_qa"])


@pytest.mark.parametrize("name", ["low-res", "high-res"])
def test_both_spellings_of_the_test_sets(name: str):
    assert named(f"{name}-test") == named(f"test-{name}") != []
    more = named("okvqa", f"test-{name}")
    # a set adds to what was named before
    assert more == ["okvqa:validation", *named(f"{name}-test")]


def test_the_video_sets_of_both_references():
    assert named("short-video")[1] == "temp_compass:validation" and len(named("short-video")) == 5
    assert named("short_video") == named("molmo2-short-video") and len(named("short_video")) == 7
    assert named("video") == [*named("molmo2-short-video"), *named("long_video")]
    assert named("multi_image") == named("multi-image")
    assert named("mlvu_mc_test", "mlvu_mc:test") == ["mlvu_mc:test"]


def test_every_name_in_a_set_is_one():
    for name, members in SETS.items():
        if members:
            assert len(named(name)) == len(members)


def test_tasks_of_the_paper_take_its_crops_whatever_else_is_named():
    for words in (["paper"], ["okvqa,paper"], ["chart_qa:test", "paper"]):
        found = {task.name: published_crops(words, task, split) for task, split in resolve(words)}
        assert found.pop("okvqa", None) is None
        assert found.pop("countbench_qa") is None and found.pop("pixmo_count_counting") is None
        assert set(found.values()) == {36} and len(found) == 9
    (task, split), *_ = resolve("chart_qa:test")
    assert published_crops(["chart_qa:test"], task, split) is None
    assert published_crops(["paper"], task, "validation") is None  # another split than the paper's


def test_a_dataset_that_has_no_validation_split_means_its_own():
    assert named("countbench_qa", "pointing_eval", "clock_bench") == [
        "countbench_qa:huggingface",
        "pointing_eval:test",
        "clock_bench:coco",
    ]
    assert named("mmmu", "ai2_diagram") == [
        "mmmu_test:validation",
        "ai2_diagram_v2_mix_transparent:validation",
    ]
    assert named("counts:mine") == ["counts:mine"]  # any shards, by their name


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("chart_q", "There is no task or set 'chart_q'; did you mean 'chart_qa'?"),
        ("hig-res", "There is no task or set 'hig-res'; did you mean 'high-res'?"),
        ("chart_qa:tset", "chart_qa has no split 'tset'; it has validation, test."),
        (" , ", "No task is named; give names of tasks or a set (low-res, high-res,"),
    ],
)
def test_mistakes(word: str, says: str):
    with pytest.raises(ValueError, match=r"\.$|\?$") as error:
        resolve(word)
    assert str(error.value).startswith(says)
