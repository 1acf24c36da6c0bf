"""Letters read from replies about videos, and their means, against the reference's."""

from statistics import fmean

import pytest
from golden_files import cases_of

from molmo_ds.eval.metrics import video_choice
from molmo_ds.eval.row import Row

LETTERS = "ABCDE"
COLUMNS = {
    "video_mme_letter": "video_mme",
    "perception_test_index": "perception_test",
    "ego_schema_index": "ego_schema",
    "nextqa_letter": "nextqa",
    "long_video_bench_letter": "long_video_bench",
    "muir_bench_letter": "muir_bench",
}


@pytest.mark.parametrize("column", COLUMNS)
def test_letter(column: str) -> None:
    """What the reference draws at random is None here."""
    read = video_choice.READERS[COLUMNS[column]]
    for case in cases_of("video_multiple_choice"):
        golden = case[column]
        if isinstance(golden, dict):
            golden = golden.get("score", "") if golden["deterministic"] else ""
        if isinstance(golden, int):
            golden = LETTERS[golden] if golden >= 0 else ""
        assert (read(case["response"], case["options"]) or "") == golden, case


def test_first_letter_of_a_reply() -> None:
    for case in cases_of("video_multiple_choice"):
        golden = case["mvbench_and_mlvu_starts_with_b"]
        assert video_choice.starts_with(case["response"], "B") == bool(golden), case


def row_of(about: dict) -> Row:
    options = about.get("options") or list("wxyz")
    annotation = {"options": options, "answer_index": LETTERS.index(about["answer"])}
    return Row(id="r", index=0, picture="", annotation=annotation, metadata=about)


def test_means() -> None:
    """A reply that cannot be read is wrong here; Video-MME's leaves it out."""
    for case in cases_of("video_aggregate"):
        found: dict[str, list[float]] = {}
        for reply, about in zip(case["predictions"], case["metadatas"], strict=True):
            row = row_of(about)
            if case["metric"] == "video_mme":
                scores = video_choice.score_video_mme(reply, row)
                part = about["duration"]
            else:
                scores = video_choice.score_letter(
                    reply, row, video_choice.READERS["long_video_bench"]
                )
                part = f"duration_{about['duration_group']}"
            if scores["unreadable"]:
                assert scores["accuracy"] == 0 or case["metric"] != "video_mme"
                continue
            for name in (part, "all"):
                found.setdefault(name, []).append(scores["accuracy"])
        golden = {name: one for name, one in case["score"].items() if one != "nan"}
        assert {name: fmean(one) for name, one in found.items()} == pytest.approx(golden, abs=1e-6)
