"""The public data sets that Molmo is trained and evaluated on, by name."""

import difflib

from molmo_ds.data.sources import (
    android,
    charts,
    clocks,
    diagrams,
    documents,
    exams,
    molmo2,
    pixmo,
    vqa,
)
from molmo_ds.data.sources.source import Item, Picture, Row, Source

FAMILIES = (pixmo, vqa, documents, charts, diagrams, exams, android, clocks, molmo2)
ALL = {source.name: source for family in FAMILIES for source in family.SOURCES}


def get(name: str) -> Source:
    """The data set of that name; ValueError with the nearest name where there is none."""
    if name not in ALL:
        raise ValueError(
            f"There is no data set '{name}'; did you mean '{difflib.get_close_matches(name, ALL, 1, 0)[0]}'?"
        )
    return ALL[name]


__all__ = ["ALL", "Item", "Picture", "Row", "Source", "get"]
