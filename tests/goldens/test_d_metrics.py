"""Scores against the reference's: every recorded case of every metric that is scored here."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from golden_files import need, read_json

from molmo_ds.eval import scores
from molmo_ds.eval.pointing import extract_points, in_format, pointing_scores
from molmo_ds.eval.tasks import mean

FILES = ("metrics", "metrics2")


def mmmu(case: dict) -> float:
    random.seed(42)  # unreadable choices are drawn; the goldens drew with this seed
    return scores.mmmu_score(case["target"], case["response"], case["metadata"].get("options"))


def single(case: dict) -> float:
    """One example through the reference's evaluator of short answers: the reply is parsed first."""
    got, about = scores.parse_answer(case["prediction"]), case["metadata"]
    metric = case["metric"]
    if metric == "mc":
        return scores.multiple_choice_score(about.get("answer_idx"), got, about["option_names"])
    answers = about.get("answers")
    if metric in ("vqa_score", "a_okvqa_score"):
        answers = [answers] if isinstance(answers, str) else answers
        return {"vqa_score": scores.vqa_score, "a_okvqa_score": scores.a_okvqa_score}[metric](answers, got)
    one = {"ansl": scores.anls, "relaxed_correctness": scores.relaxed_correctness, "em": scores.exact_match}[metric]
    return max(one(answer, got) for answer in scores.true_answers(answers))


def real_world(case: dict) -> float:
    choice = case["metadata"]["question_type"] == "multiple_choice"
    return scores.real_world_qa_score(case["target"], case["pred"], choice)


METRICS: dict[str, Callable[[dict], object]] = {
    "vqa_score": lambda c: scores.vqa_score(c["target"], c["pred"]),
    "a_okvqa_score": lambda c: scores.a_okvqa_score(c["target"], c["pred"]),
    "relaxed_correctness": lambda c: scores.relaxed_correctness(c["target"], c["pred"]),
    "anls_metric": lambda c: scores.anls(c["target"], c["pred"]),
    "select_mc_option": lambda c: scores.select_mc_option(c["pred"], c["options"]),
    "real_world_qa_score": real_world,
    "mmmu_score_mc": mmmu,
    "mmmu_score_open": mmmu,
    "VqaEval_single": single,
}
# scored by a test of its own, below
OWN = ("vqa_preprocess", "PointCountEval_single", "PointCountEval_aggregate", "extract_points", "PointingEval_single")
OWN += ("VqaEval_aggregate", "splits_without_answers", "vqa_official", "anls_of_kits", "distributed_run")
OWN += ("dense_caption", "judge_cache_key", "loss_over_ranks")  # test_d_captions.py


def cases_of(name: str) -> list[dict]:
    """The cases of a metric, in whichever file holds it."""
    for file in FILES:
        path = f"D_metrics/{file}.json"
        found = read_json(path).get(name) if need("D_metrics").joinpath(f"{file}.json").is_file() else None
        if found is not None:
            assert found["cases"], name
            return found["cases"]
    need(f"D_metrics/{' or '.join(FILES)}.json:{name}")
    raise AssertionError


def close(ours: float, golden: Any) -> bool:
    """Whether a score is the golden one."""
    return math.isclose(float(ours), float(golden), abs_tol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_score(metric: str):
    wrong = []
    for case in cases_of(metric):
        if "raises" in case:
            with pytest.raises(ValueError, match=r"^[A-Z].*[^.]\.$"):  # a sentence
                METRICS[metric](case)
        elif not close(METRICS[metric](case), case["score"]):
            wrong.append((case, METRICS[metric](case)))
    assert not wrong


@pytest.mark.parametrize("file", FILES)
def test_what_is_not_scored_here_is_named(file: str):
    known = {*METRICS, *OWN}
    others = sorted(set(read_json(f"D_metrics/{file}.json")) - known)
    if others:
        pytest.skip(f"{file}.json also holds cases of functions that the package has not: {', '.join(others)}.")


def test_vqa_preprocessing():
    cases = cases_of("vqa_preprocess")
    assert [scores.normalise_answer(case["text"]) for case in cases] == [case["out"] for case in cases]


def test_point_count():
    for case in cases_of("PointCountEval_single"):
        found = scores.point_count_scores(case["prediction"], case["metadata"]["count"])
        assert found == {name: case["score"][name] for name in found}, case


def test_point_count_over_several():
    for case in cases_of("PointCountEval_aggregate"):
        counts = [about["count"] for about in case["metadatas"]]
        found = mean([scores.point_count_scores(text, n) for text, n in zip(case["predictions"], counts, strict=True)])
        assert found == pytest.approx({name: case["score"][name] for name in found}, abs=1e-6), case


def test_extract_points():
    for case in cases_of("extract_points"):
        found = extract_points(case["text"], case["w"], case["h"])
        wanted = case["score"]["score"]
        assert len(found) == len(wanted), case
        assert all(a == pytest.approx(b) for a, b in zip(found, map(tuple, wanted))), case
        assert in_format(case["text"]) == case["valid_format"], case


def test_pointing():
    for case in cases_of("PointingEval_single"):
        found = pointing_scores(
            case["prediction"], case["gt_points"], case["mask_rects_xyxy_halfopen"], case["image_size"]
        )
        # the reference crashes on a well-formed text whose points all lie outside; here that is 0
        wanted = dict.fromkeys(found, 0.0) if "raises" in case else case["score"]
        assert found == pytest.approx(wanted, abs=1e-6), case


def over_examples(metric: str, predictions: list[str], abouts: list[dict]) -> float:
    """The mean of one metric over examples, each once."""
    rows = [{"prediction": text, "metadata": about, "metric": metric} for text, about in zip(predictions, abouts)]
    if metric == "real_world_qa_score":
        one = [real_world({"target": r["metadata"]["answer"], "pred": r["prediction"], **r}) for r in rows]
    elif metric in ("valid", "correct", "close"):
        one = [scores.point_count_scores(r["prediction"], r["metadata"]["count"])[metric] for r in rows]
    else:
        one = [single(row) for row in rows]
    return mean([{metric: float(value)} for value in one])[metric]


def has_metric(metric: str) -> bool:
    """Whether the package computes a metric; not the parts of one, such as `em_human` or `correct_3`."""
    return metric in (
        "vqa_score",
        "relaxed_correctness",
        "em",
        "ansl",
        "real_world_qa_score",
        "valid",
        "correct",
        "close",
    )


def test_vqa_over_several():
    checked = 0
    for case in cases_of("VqaEval_aggregate"):
        for metric in filter(has_metric, case["score"]):
            checked += 1
            found = over_examples(metric, case["predictions"], case["metadatas"])
            assert close(found, case["score"][metric]), case
    assert checked


def test_every_example_counts_once():
    checked = 0
    for case in cases_of("distributed_run"):
        for metric in filter(has_metric, case["metrics_every_example_once"]):
            checked += 1
            found = over_examples(metric, case["predictions"], case["metadatas"])
            assert close(found, case["metrics_every_example_once"][metric]), (case["kind"], metric)
    assert checked


def test_splits_without_answers():
    """The reference crashes or gives 0; wanted is no metric, so that a truth is asked for in every score."""
    for case in cases_of("splits_without_answers"):
        with pytest.raises(ValueError, match=r"^The true (answer|option) .*\.$"):
            single(case)


def test_the_score_of_the_reference_not_the_official_one():
    for case in cases_of("vqa_official"):
        assert close(scores.vqa_score(case["answers"], case["prediction"]), case["reference"]), case


def test_anls_squeezes_no_blanks():
    for case in cases_of("anls_of_kits"):
        assert close(scores.anls(case["target"], case["prediction"]), case["reference"]), case
