"""Text in pictures: DocVQA, InfographicVQA, SceneText (ST-VQA).

Layouts: DocVQA as the loader of allenai/molmo reads HuggingFaceM4/DocumentVQA (the same columns stand in the card of
lmms-lab/DocVQA); the other two as that loader reads the JSON of the Robust Reading Competition.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from molmo_ds.data.sources.source import Row, Source, asks, read_json

_HELD_OUT = 1024  # ST-VQA has no validation split; the reference draws this many with this seed
_SEED = 63069


def read_info_qa(folder: Path, split: str) -> Iterable[Row]:
    """The validation file has a longer name than the others."""
    name = "val_v1.0_withQT" if split == "validation" else f"{split}_v1.0"
    return read_json(folder, f"infographicsVQA_{name}.json")["data"]


def read_st_qa(folder: Path, split: str) -> Iterable[Row]:
    """Validation is drawn from the training questions as the reference draws it."""
    if split == "test":
        return read_json(folder, "test_task_3.json")["data"]
    rows = sorted(
        read_json(folder, "train_task_3.json")["data"], key=lambda row: row["question_id"]
    )
    np.random.RandomState(_SEED).shuffle(rows)
    return rows[_HELD_OUT:] if split == "train" else rows[:_HELD_OUT]


_TERMS = "terms of the Robust Reading Competition"
_LOADER = "allenai/molmo, olmo/data/academic_datasets.py"

SOURCES = [
    Source(
        "doc_qa",
        _TERMS,
        f"{_LOADER}; card of lmms-lab/DocVQA",
        asks("doc_qa", answer="answers", example_id="questionId"),
        hub="HuggingFaceM4/DocumentVQA",
    ),
    Source(
        "info_qa",
        _TERMS,
        _LOADER,
        asks("info_qa", "images/{image_local_name}", answer="answers", example_id="questionId"),
        read=read_info_qa,
        by_hand="register at https://rrc.cvc.uab.es/?ch=17 (task 3) and unpack so that DIR holds images/ and"
        " infographicsVQA_train_v1.0.json, infographicsVQA_val_v1.0_withQT.json, infographicsVQA_test_v1.0.json",
    ),
    Source(
        "st_qa",
        _TERMS,
        _LOADER,
        asks("st_qa", "file_path", answer="answers", example_id="question_id"),
        read=read_st_qa,
        by_hand="register at https://rrc.cvc.uab.es/?ch=11 (task 3) and unpack so that DIR holds train_task_3.json,"
        " test_task_3.json and the pictures under the paths that these files give",
    ),
]
