"""CoSyn, pictures that programs drew after descriptions: ten kinds of documents, and places in them.

Layouts: as allenai/molmo2 f3cb108, olmo/data/academic_image_datasets.py, reads allenai/CoSyn-400K (a configuration for
each kind; qa_pairs with question, explanation, answer), allenai/Molmo2-SynMultiImageQA (the same about several pages)
and allenai/CoSyn-point. A name with `_exp` learns the explanation before the answer.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from molmo_ds.data.sources.pixmo_points import places_of
from molmo_ds.data.sources.source import Item, LeftOut, Row, Source, annotation, picture

KINDS = (
    *("chart", "chemical", "circuit", "diagram", "document"),
    *("graphic", "math", "music", "nutrition", "table"),
)
OF_PAGES = ("chart", "chemical", "circuit", "diagram", "doc", "graphic", "music", "table")
MOST_PAGES = 5


def cosyn(row: Row, split: str, kind: str, explained: bool) -> list[Item]:
    """A picture with its questions."""
    return [Item(picture(row["image"]), _asked(row, kind, explained), {"image_id": row["id"]})]


def pages(row: Row, split: str, kind: str, explained: bool) -> list[Item]:
    """Up to five pictures with questions about them."""
    if row["metadata"]["num_images"] > MOST_PAGES:
        raise LeftOut(f"more than {MOST_PAGES} pictures")
    shown = tuple(one for value in row["images"] for one in picture(value))
    return [Item(shown, _asked(row, kind, explained), {"image_id": row["id"]})]


def _asked(row: Row, kind: str, explained: bool) -> list[dict[str, Any]]:
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
    return asked


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


def _with_and_without(
    prefix: str, licence: str, read: Callable[..., list[Item]], hub: str, kinds: tuple[str, ...]
) -> list[Source]:
    """A source of each kind as it is, and one that learns the explanation."""
    return [
        Source(
            prefix + kind + "_exp" * explained,
            licence,
            _LOADER,
            functools.partial(read, kind=kind, explained=explained),
            _SPLITS,
            hub,
            (kind,),
        )
        for kind in kinds
        for explained in (False, True)
    ]


SOURCES = [
    *_with_and_without("cosyn_", "ODC-BY-1.0*", cosyn, "allenai/CoSyn-400K", KINDS),
    *_with_and_without(
        "cosyn_multidoc_", "not read*", pages, "allenai/Molmo2-SynMultiImageQA", OF_PAGES
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
