"""Tests made for pupils and students: ScienceQA, MMMU, MathVista.

Layouts: the cards of lmms-lab/ScienceQA (the columns of derek-thomas/ScienceQA), AI4Math/MathVista and MMMU/MMMU. The
reference shows ScienceQA's hint twice and never the question.
"""

import ast
import re

from molmo_ds.data.sources.source import Item, LeftOut, Row, Source, annotation, picture

_SUBJECTS = (
    "Accounting Agriculture Architecture_and_Engineering Art Art_Theory Basic_Medical_Science Biology Chemistry"
    " Clinical_Medicine Computer_Science Design Diagnostics_and_Laboratory_Medicine Economics Electronics"
    " Energy_and_Power Finance Geography History Literature Manage Marketing Materials Math Mechanical_Engineering"
    " Music Pharmacy Physics Psychology Public_Health Sociology"
)


def science_qa(row: Row, split: str) -> list[Item]:
    """Multiple choice; only the questions with a picture."""
    if row["image"] is None:
        raise LeftOut("question without a picture")
    question = f"{row['hint']}\n{row['question']}" if row["hint"] else row["question"]
    asked = annotation(
        "science_qa", question=question, options=list(row["choices"]), answer_index=row["answer"]
    )
    known = {"subject": row["subject"]} if split != "train" and row.get("subject") else {}
    return [Item(picture(row["image"]), [asked], known)]


def mmmu(row: Row, split: str) -> list[Item]:
    """College exams; the first picture only, and none where the options are pictures. The test split has no answers."""
    choice = row["question_type"] == "multiple-choice"
    known = {
        "example_id": row["id"],
        "question_type": row["question_type"],
        "answer": row["answer"],
    }
    shown = picture(row["image_1"])
    answer = row["answer"] if row["answer"] != "?" else None
    if not choice:
        answers = (
            ast.literal_eval(answer) if answer and answer.startswith("[") else answer and [answer]
        )
        return [Item(shown, [annotation("vqa2", question=row["question"], answers=answers)], known)]
    options = ast.literal_eval(row["options"])
    if sum(re.match(r"<img='(.*?)'>", option) is not None for option in options) > 1:
        shown = ()
    index = ord(answer) - ord("A") if answer else None
    return [
        Item(
            shown,
            [
                annotation(
                    "a_okvqa_mc", question=row["question"], options=options, answer_index=index
                )
            ],
            known,
        )
    ]


def math_vista(row: Row, split: str) -> list[Item]:
    """Mathematics in pictures; the question without the instructions around it."""
    question = row["question"].split("Question:")[-1].split("Hint:")[0].strip()
    keys = ("answer", "precision", "choices", "question_type", "answer_type")
    known = {"example_id": row["pid"], "query": row["question"], **{key: row[key] for key in keys}}
    known |= {
        key: row["metadata"][key]
        for key in ("task", "category")
        if (row.get("metadata") or {}).get(key)
    }
    if row["question_type"] != "multi_choice":
        asked = annotation("eval_short_answer", question=question, answer=row["answer"] or None)
        return [Item(picture(row["decoded_image"]), [asked], known)]
    options = list(row["choices"])
    index = options.index(row["answer"]) if row["answer"] in options else None
    asked = annotation(
        "eval_multiple_choice", question=question, options=options, answer_index=index
    )
    return [Item(picture(row["decoded_image"]), [asked], known)]


_MMMU = {split: split for split in ("dev", "validation", "test")}
_MATH_VISTA = {"validation": "testmini", "test": "test"}

SOURCES = [
    Source(
        "science_qa_img",
        "CC BY-SA 4.0",
        "card of lmms-lab/ScienceQA",
        science_qa,
        hub="derek-thomas/ScienceQA",
        aliases=("science_qa",),
    ),
    Source(
        "mmmu", "Apache-2.0", "dataset card", mmmu, _MMMU, "MMMU/MMMU", tuple(_SUBJECTS.split())
    ),
    Source(
        "math_vista",
        "CC BY-SA 4.0",
        "card of AI4Math/MathVista",
        math_vista,
        _MATH_VISTA,
        "AI4Math/MathVista",
        aliases=("math_vista_v2",),
    ),
]
