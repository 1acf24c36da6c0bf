"""The annotations of one picture become records as the reference cuts them; what is dropped is counted."""

import dataclasses
import math
from collections import Counter

from molmo_ds.data.sample.annotation import ONE_OF
from molmo_ds.data.sources.source import Cut, Item


def merge(items: list[Item]) -> Item:
    """Items of one picture or video as one with all annotations, and the metadata that they share."""
    first = items[0]
    shared = {
        key: value
        for key, value in first.metadata.items()
        if all(item.metadata.get(key) == value for item in items)
    }
    said = [one for item in items for one in item.annotations]
    return dataclasses.replace(first, annotations=said, metadata=shared)


def cut(item: Item, how: Cut, dropped: Counter) -> list[Item]:
    """The records of a picture, in order; none where all its annotations are dropped."""
    pieces = [_few_points(item.annotations, how.points, dropped)]
    if how.points_of_record is not None:
        pieces = [part for piece in pieces for part in _by_points(piece, how.points_of_record)]
    if how.halve:
        pieces = [part for piece in pieces for part in _even(piece, min(2, len(piece)))]
    if how.annotations is not None:
        pieces = [
            part
            for piece in pieces
            for part in _even(piece, math.ceil(len(piece) / how.annotations))
        ]
    records = [dataclasses.replace(item, annotations=piece) for piece in pieces if piece]
    if not how.styles:
        return records
    return [_in_style(record, style) for record in records for style in how.styles]


def _few_points(annotations: list[dict], most: int | None, dropped: Counter) -> list[dict]:
    if most is None:
        return annotations
    kept = [one for one in annotations if _points(one) <= most]
    if len(kept) < len(annotations):
        dropped[f"annotation of more than {most} points"] += len(annotations) - len(kept)
    return kept


def _points(annotation: dict) -> int:
    """The points of an annotation, of several pictures or times too; the most of alternatives."""
    if ONE_OF in annotation:
        return max(map(_points, annotation[ONE_OF]))
    groups = annotation.get("point_groups") or ()
    held = [annotation.get("points"), *(group["points"] for group in groups)]
    return sum(len(points or ()) for points in held)


def _by_points(annotations: list[dict], most: int) -> list[list[dict]]:
    """Neighbours with at most `most` points together; an annotation that has more is alone."""
    pieces: list[list[dict]] = [[]]
    total = 0
    for one in annotations:
        count = _points(one)
        if pieces[-1] and total + count > most:
            pieces.append([])
            total = 0
        pieces[-1].append(one)
        total += count
    return pieces


def _even(annotations: list[dict], parts: int) -> list[list[dict]]:
    """Pieces of nearly one size, the larger ones first."""
    size, more = divmod(len(annotations), max(1, parts))
    ends = [0]
    for number in range(parts):
        ends.append(ends[-1] + size + (number < more))
    return [annotations[start:end] for start, end in zip(ends, ends[1:])]


def _in_style(item: Item, style: str) -> Item:
    return dataclasses.replace(
        item, annotations=[{**one, "style": style} for one in item.annotations]
    )
