"""Scores of lmms-eval and of molmo_ds for equal questions and replies; started by test_lmms_scores.py.

    python lmms_scores.py SAID.json

SAID.json receives {task: {reply: [ours, theirs]}}; a score that is drawn, since nothing could be read, is "drawn".
"""

import ast
import importlib
import json
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmms_eval
import numpy as np

from molmo_ds.eval.benchmarks import BENCHMARKS
from molmo_ds.eval.row import Row
from molmo_ds.eval.sets import ALIASES

Score = Callable[[str], float]
TRIES = 24  # of a score that may be drawn
# reads videos, of which there are none here
sys.modules.setdefault("decord", types.SimpleNamespace(VideoReader=None, cpu=None))

OPTIONS = ["a dog", "a cat", "a cow", "a hen"]
RIGHT = 1
CHOICES = (
    "B",
    "b",
    "B.",
    "(B)",
    "B. a cat",
    "B: a cat",
    "(B) a cat",
    "a cat",
    "The answer is B.",
    "The answer is (B).",
    "Answer: B",
    "A",
    "A. a dog",
    "a dog",
    "Both",
    "It is a big animal that has four legs",
    "",
)
TEXTS = ("red", "Red", "red.", "a red", "red car", "Answer: red", "blue", "blue\nred\nred", "")
LINES = ("12 main street", "12  Main street", "12 main stree", "12 main", "main", "")
NUMBERS = ("20", "21", "21.1", "20%", "20 %", "twenty", "about 20", "Answer: 20", "2,0", "")
COUNTS = (
    "3",
    "three",
    "3.",
    "There are 3.",
    "Counting the cats shows a total of 3.",
    "There are 3 cats",
    "4",
    "none",
    "",
)


def utils(module: str) -> types.ModuleType:
    """Of a task of lmms-eval."""
    return importlib.import_module(f"lmms_eval.tasks.{module}.utils")


def functions(file: str, *names: str) -> dict[str, Callable[..., Any]]:
    """Functions of a file of lmms-eval that cannot be imported without the data set."""
    source = Path(lmms_eval.__file__).parent / "tasks" / file
    tree = ast.parse(source.read_text())
    wanted = [one for one in tree.body if getattr(one, "name", "") in names]
    found: dict[str, Any] = {}
    exec(compile(ast.Module(wanted, []), str(source), "exec"), found)
    return found


def ours(task: str, annotation: dict[str, Any], **metadata: Any) -> Score:
    """The headline of one of our benchmarks."""
    found = BENCHMARKS[ALIASES.get(task, task)]

    def score(reply: str, number: int) -> float:
        row = Row(id=str(number), index=0, picture="", annotation=annotation, metadata=metadata)
        return found.score(reply, row)[found.headline]

    return lambda reply: settled(lambda number: score(reply, number))


def theirs(process: Callable[[str], Any]) -> Score:
    """What lmms-eval makes of a reply, from what one of its functions says."""

    def score(reply: str, number: int) -> float:
        random.seed(number)
        np.random.seed(number)
        return process(reply)

    return lambda reply: settled(lambda number: score(reply, number))


def settled(score: Callable[[int], Any]) -> Any:
    """A score that is the same each time, or "drawn"."""
    found = {round(float(score(number)), 6) for number in range(TRIES)}
    return found.pop() if len(found) == 1 else "drawn"


def choice(**more: Any) -> dict[str, Any]:
    """An annotation with options."""
    return {
        "style": "a_okvqa_mc",
        "question": "?",
        "options": OPTIONS,
        "answer_index": RIGHT,
        **more,
    }


def exact(reply: str, answer: str) -> float:
    """The metric exact_match of several tasks."""
    from lmms_eval.api.metrics import exact_match_hf_evaluate

    words = {"predictions": [reply], "references": [answer]}
    found = exact_match_hf_evaluate(**words, ignore_case=True, ignore_punctuation=True)
    return found["exact_match"]


def filtered(module: str) -> Callable[[str], str]:
    """The filter that tasks of options have."""
    kind = utils(module).MultiChoiceRegexFilter(group_select=0, ignore_case=True)
    return lambda reply: kind.apply([[reply]], [{}])[0]


def anls(reply: str) -> float:
    """Of texts in documents."""
    from lmms_eval.api.metrics import anls

    return anls(["12 main street"], [reply])["anls"]


def choices() -> dict[str, tuple[Score, Score]]:
    """Questions with four options, of which the second is right."""
    lettered = {f"a{i}": text for i, text in enumerate([*OPTIONS, "none"])}
    five = {f"option{i}": text for i, text in enumerate([*OPTIONS, "N/A"])}
    named = [f"{letter}. {text}" for letter, text in zip("ABCD", OPTIONS)]
    egos = [*named, "E. none"]
    mmmu = {"id": "validation_Art_1", "question_type": "multiple-choice", "answer": "B"}
    muir = dict.fromkeys(("task", "idx", "image_relation", "image_type"), "") | {"answer": "B"}
    mme = {"sub_category": "", "domain": "", "task_type": "", "question_id": "", "duration": "long"}
    mme |= {"answer": "B", "videoID": ""}
    tomato = {"question": "?", "options": OPTIONS, "answer": RIGHT, "reason_type": ""}
    test = {"video_name": "", "question": "", "answer_id": RIGHT}
    ai2d, muirbench = filtered("ai2d"), filtered("muirbench")
    fine = functions("plm_videobench/fgqa/fgqa_utils.py", "qa_template", "check_ans")

    def mmmu_right(reply: str) -> bool:
        found = utils("mmmu").mmmu_process_results(mmmu | {"options": str(OPTIONS)}, [reply])
        return found["mmmu_acc"]["parsed_pred"] == ["B"]

    def ego_right(reply: str) -> bool:
        doc = {"option": egos, "video_idx": "", "answer": RIGHT}
        said = utils("egoschema").egoschema_process_results_generation(doc, [reply])["score"]
        return said["pred"] == said["ground_truth"]

    def long_right(reply: str) -> bool:
        doc = {
            **five,
            "id": "",
            "duration_group": 15,
            "question_category": "",
            "correct_choice": RIGHT,
        }
        return (
            utils("longvideobench").longvideobench_process_results(doc, [reply])["lvb_acc"][
                "parsed_pred"
            ]
            == "B"
        )

    def muir_right(reply: str) -> bool:
        said = utils("muirbench").muir_process_results(muir, [muirbench(reply)])
        return utils("muirbench").muir_aggregation([said["muirbench_score_overall"]])

    def real_right(reply: str) -> float:
        return utils("realworldqa").realworldqa_process_results({"answer": "B"}, [reply])[
            "exact_match"
        ]

    def fine_right(reply: str) -> bool:
        options = {f"option_{i}": text for i, text in enumerate(OPTIONS[:2])}
        doc = {"question": "?", "options": options, "answer": OPTIONS[RIGHT]}
        return fine["check_ans"](reply, fine["qa_template"](doc)[1])

    single = {
        "ai2d": lambda reply: exact(ai2d(reply), "B"),
        "science_qa": lambda reply: utils("scienceqa").sqa_process_results(
            {"choices": OPTIONS, "answer": RIGHT}, [reply]
        )["exact_match"],
        "mmmu": mmmu_right,
        "real_world_qa": real_right,
        "blink": lambda reply: utils("blink").blink_process_results(
            {"answer": "(B)", "choices": OPTIONS, "idx": "", "sub_task": ""}, [reply]
        )["blink_acc"]["is_correct"],
        "muir_bench": muir_right,
        "mvbench": lambda reply: utils("mvbench").mvbench_process_results(
            {"candidates": OPTIONS, "answer": OPTIONS[RIGHT]}, [reply]
        )["mvbench_accuracy"]["score"],
        "nextqa_mc": lambda reply: utils("nextqa").nextqa_mc_process_results(
            {**lettered, "answer": RIGHT}, [reply]
        )["exact_match"],
        "ego_schema": ego_right,
        "mlvu_mc": lambda reply: (
            utils("mlvu").mlvu_process_results(
                {"task_type": "ego", "question": "", "answer": "B"}, [reply]
            )["mlvu_percetion_score"]["pred_answer"]
            == "B"
        ),
        "video_mme": lambda reply: utils("videomme").videomme_process_results(mme, [reply])[
            "videomme_perception_score"
        ]["score"],
        "perception_test": lambda reply: importlib.import_module(
            "lmms_eval.tasks.perceptiontest.val.utils"
        ).perceptiontest_val_process_results_mc(test, [reply])["accuracy"]["correct"],
        "plm_fgqa": fine_right,
        "long_video_bench": long_right,
        "lvbench": lambda reply: utils("lvbench").lvbench_process_results({"answer": "B"}, [reply])[
            "lvbench_score"
        ],
        "motionbench": lambda reply: utils("motionbench").motionbench_process_results(
            {"answer": "B"}, [reply]
        )["motionbench_acc"]["score"],
        "tomato": lambda reply: list(
            utils("tomato")
            .tomato_process_results(tomato | {"demonstration_type": "", "id": ""}, [reply])
            .values()
        )[0]["score"],
        "video_eval_pro_mc": lambda reply: utils("videoevalpro").videoevalpro_mcq_process_results(
            {"answer": "B", "options": OPTIONS}, [reply]
        )["videoevalpro_mcq_score"]["correct"],
    }
    about = {
        "real_world_qa": {"question_type": "multiple_choice", "answer": "B"},
        "video_mme": {"duration": "long"},
        "long_video_bench": {"duration_group": 15},
        "plm_fgqa": {"group": "1"},
        "tomato": {"reasoning_type": "count"},
    }
    annotations = {name: choice() for name in single}
    annotations["ego_schema"] = choice(options=[*OPTIONS, "none"])
    annotations["nextqa_mc"] = choice(options=[*OPTIONS, "none"])
    annotations["plm_fgqa"] = choice(options=OPTIONS[:2])
    annotations["real_world_qa"] = choice(question="\n".join(["?", *named]))
    return {
        name: (ours(name, annotations[name], **about.get(name, {})), theirs(process))
        for name, process in single.items()
    }


def people(module: str) -> Callable[[str], float]:
    """A score of ten people's answers."""
    answers = ["red"] * 7 + ["blue"] * 3

    def score(reply: str) -> float:
        found = [{"answer": one, "answer_id": i} for i, one in enumerate(answers)]
        doc = {"answers": found if module == "vqav2" else list(answers), "question_id": 1}
        process = getattr(utils(module), f"{module}_process_results")
        return process(doc, [reply])["exact_match"]

    return score


def texts() -> dict[str, tuple[tuple[str, ...], Score, Score]]:
    """Questions with a text or a number as the answer."""
    ten = {"style": "vqa2", "question": "?", "answers": ["red"] * 7 + ["blue"] * 3}
    line = {"style": "doc_qa", "question": "?", "answers": ["12 main street"]}
    twenty = {"style": "chart_qa", "question": "?", "answers": ["20"]}
    count = {"style": "point_count", "question": "?", "points": [[1, 1]] * 3, "point_scale": 100}
    open_answer = {"style": "vqa2", "question": "?", "answers": ["20"]}

    def chart(reply: str) -> float:
        doc = {"type": "human_test", "answer": "20"}
        return utils("chartqa").chartqa_process_results(doc, [reply])["relaxed_overall"]

    def open_right(reply: str) -> float:
        doc = {"id": "validation_Art_1", "question_type": "open", "answer": "20"}
        said = utils("mmmu").mmmu_process_results(doc, [reply])["mmmu_acc"]
        return utils("mmmu").evaluate_mmmu([said])[1]["acc"]

    def counted(reply: str) -> float:
        return utils("countbenchqa").countbenchqa_process_results({"number": 3}, [reply])["acc"]

    def pixmo(reply: str) -> float:
        return utils("pixmo_count").pixmo_count_process_results({"answer": "3"}, [reply])["acc"]

    def real(reply: str) -> float:
        return utils("realworldqa").realworldqa_process_results({"answer": "red"}, [reply])[
            "exact_match"
        ]

    short = {"style": "eval_short_answer", "question": "?", "answer": "red"}
    return {
        "vqa_v2": (TEXTS, ours("vqa_v2", ten), theirs(people("vqav2"))),
        "text_vqa": (TEXTS, ours("text_vqa", ten), theirs(people("textvqa"))),
        "okvqa": (TEXTS, ours("okvqa", ten), theirs(people("ok_vqa"))),
        "gqa": (
            TEXTS,
            ours("gqa", {"style": "gqa", "question": "?", "answers": ["red"]}),
            theirs(lambda reply: exact(reply, "red")),
        ),
        "real_world_qa, open": (
            TEXTS,
            ours("real_world_qa", short, question_type="short_answer", answer="red"),
            theirs(real),
        ),
        "doc_qa": (LINES, ours("doc_qa", line), theirs(anls)),
        "info_qa": (LINES, ours("info_qa", line), theirs(anls)),
        "chart_qa": (NUMBERS, ours("chart_qa", twenty), theirs(chart)),
        "mmmu, open": (NUMBERS, ours("mmmu", open_answer, answer="20"), theirs(open_right)),
        "countbench_qa": (COUNTS, ours("countbench_qa", count, count=3), theirs(counted)),
        "pixmo_count_counting": (
            COUNTS,
            ours("pixmo_count_counting", count, count=3),
            theirs(pixmo),
        ),
    }


def main(out: str) -> None:
    """Score every reply twice."""
    table = {name: (CHOICES, *pair) for name, pair in choices().items()} | texts()
    said = {}
    for name, (replies, mine, other) in table.items():
        said[name] = {reply: [mine(reply), other(reply)] for reply in replies}
    Path(out).write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
