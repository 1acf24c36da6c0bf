"""Judged captions against the reference's: replies to figures, the sample, names of cached replies."""

import pytest
from golden_files import cases_of

from molmo_ds.eval.captions import results
from molmo_ds.eval.captions.cache import file_name
from molmo_ds.eval.captions.inputs import Reference, Task, sample
from molmo_ds.eval.captions.verdict import Verdict
from molmo_ds.eval.metrics import dense_caption


def verdict(picture: dict) -> Verdict:
    """A picture of a golden as the calls would leave it."""
    replies = {
        "recall": picture["recall_reply"],
        "consistency": picture["consistency_reply"],
        "repetition": picture["repeat_reply"],
    }
    return Verdict(
        Task(Reference(picture["image_url"], ("said",), ("seen",)), "A caption."), replies=replies
    )


def test_lines() -> None:
    for case in cases_of("dense_caption"):
        for picture in case["images"]:
            assert (
                dense_caption.read_recall(picture["recall_reply"]) == picture["recall"]["scores"]
            ), picture
            inconsistent = dense_caption.read_consistency(picture["consistency_reply"])
            assert inconsistent == picture["consistency"]["inconsistent"], picture
            assert (
                dense_caption.read_repetition(picture["repeat_reply"]) == picture["is_repeating"]
            ), picture


def test_figures() -> None:
    for case in cases_of("dense_caption"):
        found = results.metrics(results.by_line([verdict(picture) for picture in case["images"]]))
        wanted = {**case["results"], "cap_f1": case["cap_f1"], "arithmetic_mean": case["avg"]}
        assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-12)


def test_the_sample() -> None:
    for case in cases_of("dense_caption"):
        drawn = sample(
            [Reference(url, ("said",), ("seen",)) for url in case["urls"]], case["sample"]
        )
        assert [one.picture for one in drawn] == case["judged_in_order"]


def test_names_of_files() -> None:
    for case in cases_of("dense_caption"):
        begin = results.prefix(case["sample"], repetition=True)
        names = {f"{begin}all-results-v3.json", f"{begin}results_v3.json", "predictions.json"}
        assert names == set(case["files"])


def test_names_of_cached_replies() -> None:
    for case in cases_of("judge_cache_key"):
        assert file_name(case["model"], case["message"], case["options"]) == case["file"]
