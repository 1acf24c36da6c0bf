"""Scores against the reference's: every recorded case of every metric that is scored here."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from golden_files import read_json

from molmo_ds.eval import scores
from molmo_ds.eval.pointing import extract_points, pointing_scores


def mmmu(case: dict) -> float:
    random.seed(42)  # unreadable choices are drawn; the goldens drew with this seed
    return scores.mmmu_score(case["target"], case["response"], case["metadata"].get("options"))


def single(case: dict) -> float:
    """One example through the reference's evaluator of short answers: the reply is parsed first."""
    got, about = scores.parse_answer(case["prediction"]), case["metadata"]
    metric = case["metric"]
    if metric == "mc":
        return scores.select_mc_option(got, about["option_names"]) == about["answer_idx"]
    if metric in ("vqa_score", "a_okvqa_score"):
        return {"vqa_score": scores.vqa_score, "a_okvqa_score": scores.a_okvqa_score}[metric](about["answers"], got)
    one = {"ansl": scores.anls, "relaxed_correctness": scores.relaxed_correctness, "em": scores.exact_match}[metric]
    answers = about["answers"]
    return max(one(answer, got) for answer in ([answers] if isinstance(answers, str) else answers))


METRICS: dict[str, Callable[[dict], object]] = {
    "vqa_score": lambda c: scores.vqa_score(c["target"], c["pred"]),
    "a_okvqa_score": lambda c: scores.a_okvqa_score(c["target"], c["pred"]),
    "relaxed_correctness": lambda c: scores.relaxed_correctness(c["target"], c["pred"]),
    "anls_metric": lambda c: scores.anls(c["target"], c["pred"]),
    "select_mc_option": lambda c: scores.select_mc_option(c["pred"], c["options"]),
    "real_world_qa_score": lambda c: scores.real_world_qa_score(
        c["target"], c["pred"], c["metadata"]["question_type"] == "multiple_choice"
    ),
    "mmmu_score_mc": mmmu,
    "mmmu_score_open": mmmu,
    "VqaEval_single": single,
}


@pytest.mark.parametrize("metric", METRICS)
def test_score(goldens: Path, metric: str):
    cases = read_json("D_metrics/metrics.json")[metric]["cases"]
    assert cases
    wrong = []
    for case in cases:
        if "raises" in case:
            with pytest.raises(ValueError):
                METRICS[metric](case)
        elif not math.isclose(float(METRICS[metric](case)), float(case["score"]), abs_tol=1e-6):
            wrong.append((case, METRICS[metric](case)))
    assert not wrong


def test_vqa_preprocessing(goldens: Path):
    cases = read_json("D_metrics/metrics.json")["vqa_preprocess"]["cases"]
    assert [scores.normalise_answer(case["text"]) for case in cases] == [case["out"] for case in cases]


def test_point_count(goldens: Path):
    for case in read_json("D_metrics/metrics.json")["PointCountEval_single"]["cases"]:
        found = scores.point_count_scores(case["prediction"], case["metadata"]["count"])
        assert found == {name: case["score"][name] for name in found}, case


def test_extract_points(goldens: Path):
    for case in read_json("D_metrics/metrics.json")["extract_points"]["cases"]:
        found = extract_points(case["text"], case["w"], case["h"])
        wanted = case["score"]["score"]
        assert len(found) == len(wanted), case
        assert all(a == pytest.approx(b) for a, b in zip(found, map(tuple, wanted))), case


def test_pointing(goldens: Path):
    for case in read_json("D_metrics/metrics.json")["PointingEval_single"]["cases"]:
        found = pointing_scores(
            case["prediction"], case["gt_points"], case["mask_rects_xyxy_halfopen"], case["image_size"]
        )
        # the reference crashes on a well-formed text whose points all lie outside; here that is 0
        wanted = dict.fromkeys(found, 0.0) if "raises" in case else case["score"]
        assert found == pytest.approx(wanted, abs=1e-6), case
