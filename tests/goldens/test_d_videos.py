"""Letters read from replies about videos, and their means, against the reference's."""

from statistics import fmean

import pytest
from golden_files import cases_of

from molmo_ds.eval.metrics import video_choice
from molmo_ds.eval.row import Row

LETTERS = "ABCDE"
SCORES = {
    "video_mme": video_choice.score_video_mme,
    "long_video_bench": video_choice.score_long_video_bench,
}
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
    annotation = {"answer": about["answer"]}
    known = {**about, "options": options}
    return Row(id="r", index=0, picture="", annotation=annotation, metadata=known)


def test_means() -> None:
    """Video-MME leaves a reply that cannot be read out, LongVideoBench draws a letter for it."""
    for case in cases_of("video_aggregate"):
        score = SCORES[case["metric"]]
        found: dict[str, list[float]] = {}
        for reply, about in zip(case["predictions"], case["metadatas"], strict=True):
            scores = score(reply, row_of(about))
            if case["metric"] == "video_mme":
                scores = {
                    name.removesuffix("_reference"): value
                    for name, value in scores.items()
                    if name.endswith("_reference")
                }
            elif scores["unreadable"]:
                continue
            for name, value in scores.items():
                found.setdefault(name, []).append(value)
        golden = {name: one for name, one in case["score"].items() if one != "nan"}
        means = {name: fmean(found[name]) for name in golden}
        assert means == pytest.approx(golden, abs=1e-6)
