"""The public data sets that Molmo is trained and evaluated on, by name."""

import difflib
from pathlib import Path

from molmo_ds.data.sources import (
    android,
    charts,
    clocks,
    cosyn,
    diagrams,
    documents,
    exams,
    fixed_answers,
    molmo2,
    pixmo,
    pixmo_points,
    several_pictures,
    texts,
    vqa,
)
from molmo_ds.data.sources.source import Item, Picture, Row, Source
from molmo_ds.data.sources.videos import (
    academic_marks,
    clipped_actions,
    llava_video,
    long_videos,
    short_videos,
    spoken_shows,
    video_actions,
    video_narratives,
    video_places,
    video_queries,
    video_questions,
    video_reasoning,
    video_segments,
)

FAMILIES = (
    *(pixmo, pixmo_points, clocks, vqa, documents, charts, diagrams, exams, android),
    *(cosyn, texts, molmo2, academic_marks),
    *(short_videos, long_videos, several_pictures, video_places),
    *(video_questions, video_reasoning, llava_video, spoken_shows, clipped_actions),
    *(video_queries, video_narratives, video_actions, video_segments, fixed_answers),
)
ALL = {source.name: source for family in FAMILIES for source in family.SOURCES}
ALIASES = {alias: source.name for source in ALL.values() for alias in source.aliases}


def get(name: str) -> Source:
    """The data set of that name or alias; ValueError with the nearest name where there is none."""
    name = ALIASES.get(name, name)
    if name not in ALL:
        nearest = difflib.get_close_matches(name, [*ALL, *ALIASES], 1, 0)[0]
        raise ValueError(f"There is no data set '{name}'; did you mean '{nearest}'?")
    return ALL[name]


def folder(data: Path, name: str, split: str) -> Path:
    """The folder of a set's shards below `data`: NAME-SPLIT, or where only that is there, of an alias."""
    source = get(name)
    places = [data / f"{one}-{split}" for one in (source.name, *source.aliases)]
    return next((place for place in places if place.is_dir()), places[0])


__all__ = ["ALIASES", "ALL", "Item", "Picture", "Row", "Source", "folder", "get"]
