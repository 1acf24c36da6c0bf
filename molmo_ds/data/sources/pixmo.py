"""PixMo, Ai2's data for Molmo: captions, questions, points, counts, drawn documents and clocks.

Layouts: the dataset cards of pixmo-cap, pixmo-points, pixmo-count and pixmo-clocks on the hub (all of 2024-12), and for
the others (pixmo-points-eval too) the columns that the loaders of allenai/molmo read. The card of pixmo-points says
that points are pixels; its rows hold percent, and the loader treats them so. Hashes are of the file's bytes.
pixmo-clocks publishes no pictures.
"""

import functools
from typing import Any

import numpy as np

from molmo_ds.data.sources.source import Item, Picture, Row, Source, annotation, pairs, picture

CLOCK_QUESTION = "Which time does this clock show?"


def _item(row: Row, annotations: list[dict[str, Any]]) -> list[Item]:
    shown = Picture(url=row["image_url"], sha256=(row.get("image_sha256") or "").lower())
    return [Item((shown,), annotations, {"image_url": row["image_url"]})]


def _points(value: Any) -> list[list[float]]:
    if isinstance(value, dict):  # a struct of lists
        return [[x, y] for x, y in zip(value["x"], value["y"])]
    return [[p["x"], p["y"]] for p in value]


def cap(row: Row, split: str, transcripts: bool = False) -> list[Item]:
    """The written caption; with `transcripts` also what each annotator said aloud."""
    spoken = (
        [annotation("transcript", text=text) for text in row["transcripts"]] if transcripts else []
    )
    return _item(row, [annotation("long_caption", text=row["caption"]), *spoken])


def cap_qa(row: Row, split: str) -> list[Item]:
    """A conversation (user first) that a language model made up from a caption."""
    messages = row.get("messages") or [row["question"], row["answer"]]
    return _item(row, [annotation("synthetic_qa", messages=list(messages))])


def ask_model_anything(row: Row, split: str) -> list[Item]:
    """A person's question with a corrected answer."""
    return _item(row, [annotation("user_qa", question=row["question"], answer=row["answer"])])


def points(row: Row, split: str, style: str) -> list[Item]:
    """Every place of something that a person named, or none."""
    places = _points(row["points"])
    return _item(row, [annotation(style, label=row["label"], points=places, point_scale=100)])


def points_eval(row: Row, split: str) -> list[Item]:
    """Places for evaluation, each with the mask in which a point counts; `masks` of height x width truth values."""
    places = _points(row["points"])
    masks = [_runs(np.asarray(mask, dtype=bool)) for mask in row["masks"]]
    return _item(
        row,
        [annotation("pointing", label=row["label"], points=places, point_scale=100, masks=masks)],
    )


def _runs(mask: np.ndarray) -> dict[str, Any]:
    """A mask as lengths of runs of pixels outside, inside, outside, ..., line by line."""
    flat = np.concatenate([[False], mask.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"height": mask.shape[0], "width": mask.shape[1], "runs": runs.tolist()}


def count(row: Row, split: str, style: str) -> list[Item]:
    """Detected objects; points in pixels, missing in the evaluation splits."""
    places = _points(row["points"]) if split == "train" and row.get("points") is not None else None
    [item] = _item(row, [annotation(style, label=row["label"], points=places)])
    item.metadata["count"] = row["count"]
    return [item]


def point_explanations(row: Row, split: str) -> list[Item]:
    """An answer whose placeholders <|POINT|> stand for points in percent; unparsed answers are left out."""
    answer = row["parsed_response"]
    texts = zip(row["points"], row["alt_text"], row["inline_text"])
    marks = [{"points": _points(places), "alt": alt, "text": text} for places, alt, text in texts]
    if answer is None or answer.count("<|POINT|>") != len(marks):
        return []
    asked = annotation(
        "point_qa", question=row["question"], answer=answer, inline_points=marks, point_scale=100
    )
    return _item(row, [asked])


def docs(row: Row, split: str, kind: str) -> list[Item]:
    """A picture that a program drew, with questions."""
    asked = [
        annotation(f"pixmo_docs_{kind}", question=q, answer=a) for q, a in pairs(row["questions"])
    ]
    return [Item(picture(row["image"]), asked, {"image_id": row["image_id"]})]


def clocks(row: Row, split: str) -> list[Item]:
    """A watch face; `text` is the answer in words."""
    keys = (
        "example_id",
        "time_format",
        "shows_seconds",
        "hour_visible",
        "minute_visible",
        "second_visible",
    )
    asked = annotation("clocks", question=CLOCK_QUESTION, answer=row["text"])
    known = {key: row[key] for key in keys}
    return [Item((Picture(path=f"images/{row['example_id']}.png"),), [asked], known)]


_PICTURES = {"url": "image_url", "group": "image_url"}
_HASHED = {**_PICTURES, "sha256": "image_sha256"}
_TRAIN = {"train": "train"}
_LICENCE = "ODC-BY-1.0"
_CARD = "dataset card"
_LOADER = "allenai/molmo, olmo/data/pixmo_datasets.py"
_SPOKEN = functools.partial(cap, transcripts=True)
_CAP_QA = f"card at 94817b5; {_LOADER} (messages)"
_POINTS = f"dataset card; {_LOADER} (scale)"

SOURCES = [
    Source("pixmo_cap", _LICENCE, _CARD, cap, _TRAIN, "allenai/pixmo-cap", **_PICTURES),
    Source(
        "pixmo_cap_transcripts", _LICENCE, _CARD, _SPOKEN, _TRAIN, "allenai/pixmo-cap", **_PICTURES
    ),
    Source("pixmo_cap_qa", _LICENCE, _CAP_QA, cap_qa, _TRAIN, "allenai/pixmo-cap-qa", **_PICTURES),
    Source(
        *("pixmo_ask_model_anything", _LICENCE, _LOADER, ask_model_anything, _TRAIN),
        hub="allenai/pixmo-ask-model-anything",
        **_HASHED,
    ),
    Source(
        *("pixmo_point_explanations", _LICENCE, _LOADER, point_explanations, _TRAIN),
        hub="allenai/pixmo-point-explanations",
        **_HASHED,
    ),
    *(
        Source(
            name,
            _LICENCE,
            _POINTS,
            functools.partial(points, style=style),
            _TRAIN,
            "allenai/pixmo-points",
            **_HASHED,
        )
        for name, style in (("pixmo_points", "pointing"), ("pixmo_points_counting", "point_count"))
    ),
    Source(
        *("pixmo_points_eval", _LICENCE, _LOADER, points_eval, {"test": "test"}),
        hub="allenai/pixmo-points-eval",
        **_HASHED,
    ),
    *(
        Source(
            name,
            _LICENCE,
            _CARD,
            functools.partial(count, style=style),
            hub="allenai/pixmo-count",
            **_HASHED,
        )
        for name, style in (("pixmo_count", "point_count"), ("pixmo_count_pointing", "pointing"))
    ),
    *(
        Source(
            *(f"pixmo_docs_{kind}", _LICENCE, _LOADER, functools.partial(docs, kind=kind)),
            hub="allenai/pixmo-docs",
            configs=(kind,),
        )
        for kind in ("charts", "diagrams", "tables", "other")
    ),
    Source(
        *(
            "pixmo_clocks",
            _LICENCE,
            "dataset card (columns); the names of the picture files are our own",
            clocks,
        ),
        splits={"train": "train", "validation": "validation"},
        confirmed=False,
        by_hand="put the parquet files of https://huggingface.co/datasets/allenai/pixmo-clocks in DIR/data and render"
        " each row's watch face with facer.io as DIR/images/EXAMPLE_ID.png",
    ),
]
