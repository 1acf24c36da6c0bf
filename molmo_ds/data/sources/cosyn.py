"""CoSyn, pictures that programs drew after descriptions: ten kinds of documents, and places in them.

Layouts: as allenai/molmo2 f3cb108, olmo/data/academic_image_datasets.py, reads allenai/CoSyn-400K (a configuration for
each kind; qa_pairs with question, explanation, answer) and allenai/CoSyn-point. A name with `_exp` learns the
explanation before the answer.
"""

import functools
from collections.abc import Mapping

from molmo_ds.data.sources.pixmo_points import places_of
from molmo_ds.data.sources.source import Item, Row, Source, annotation, picture

KINDS = (
    *("chart", "chemical", "circuit", "diagram", "document"),
    *("graphic", "math", "music", "nutrition", "table"),
)


def cosyn(row: Row, split: str, kind: str, explained: bool) -> list[Item]:
    """A picture with its questions."""
    pairs = row["qa_pairs"]
    if not isinstance(pairs, Mapping):  # parquet holds it as a list of structs or a struct of lists
        keys = ("question", "explanation", "answer")
        pairs = {key: [pair.get(key) for pair in pairs] for key in keys}
    style = f"cosyn_{kind}_exp" if explained else f"cosyn_{kind}"
    asked = []
    for number, (question, answer) in enumerate(zip(pairs["question"], pairs["answer"])):
        if explained:
            answer = f"{pairs['explanation'][number]} Answer: {answer}"
        asked.append(annotation(style, question=question, answer=answer))
    return [Item(picture(row["image"]), asked, {"image_id": row["id"]})]


def cosyn_point(row: Row, split: str) -> list[Item]:
    """Questions that are answered by places in percent; `names` says what they show."""
    asked = [
        annotation(
            "cosyn_point", question=question, label=name, points=places_of(places), point_scale=100
        )
        for question, places, name in zip(row["questions"], row["answer_points"], row["names"])
    ]
    return [Item(picture(row["image"]), asked, {"image_id": row["id"]})]


_LOADER = "allenai/molmo2, olmo/data/academic_image_datasets.py"
_SPLITS = {"train": "train", "validation": "validation"}

SOURCES = [
    *(
        Source(
            f"cosyn_{kind}" + "_exp" * explained,
            "ODC-BY-1.0*",
            _LOADER,
            functools.partial(cosyn, kind=kind, explained=explained),
            _SPLITS,
            "allenai/CoSyn-400K",
            (kind,),
        )
        for kind in KINDS
        for explained in (False, True)
    ),
    Source(
        "cosyn_point",
        "ODC-BY-1.0*",
        _LOADER,
        cosyn_point,
        _SPLITS,
        hub="allenai/CoSyn-point",
    ),
]
