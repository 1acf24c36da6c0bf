"""The first samples that a run sees, drawn again from its shards by its own settings: pictures, words and points."""

import dataclasses
import html
import itertools

import numpy as np
from PIL import Image

from molmo_ds.config import RunConfig
from molmo_ds.data.decode import BadSample, load_image
from molmo_ds.data.order.loader import Mixture, rank_lanes, sequences
from molmo_ds.data.sample.record import first_size, is_video
from molmo_ds.data.show.film import film_strip
from molmo_ds.data.show.pictures import img
from molmo_ds.eval.metrics.pointing import extract_points

SIDE = 320  # pixels of a picture's longer side
TALKS = 4  # conversations of a sample that are shown
LETTERS = 600  # of a turn


@dataclasses.dataclass(frozen=True)
class Shown:
    """One sample, ready for the page."""

    name: str  # source, number, epoch
    key: str
    pictures: list[tuple[str, tuple[int, int]]]  # HTML and size; points belong to the first
    film: str  # HTML of a video's frames
    talks: list[list[str]]  # turns, the user's first
    left: int  # conversations that are not shown
    points: list[tuple[float, float]]  # of all talks, in pixels of the first picture


def samples(config: RunConfig, count: int) -> list[Shown]:
    """The documents of the run's first sequences; ValueError or OSError where its shards cannot be read."""
    data = dataclasses.replace(config.data, num_workers=0)
    config = dataclasses.replace(config, data=data)
    mixture = Mixture.open(config)
    stream = sequences(config, mixture, rank_lanes(config, 0, 1), {})
    references = itertools.chain.from_iterable(sequence.references for sequence in stream)
    return [_shown(mixture, *reference) for reference in itertools.islice(references, count)]


def _shown(mixture: Mixture, name: str, sample: int, epoch: int) -> Shown:
    source = mixture.names.index(name)
    record = mixture.sets[source].read(sample)
    builder = mixture.builders[source]
    said = builder.conversations(record, mixture.draws(source, sample, epoch))
    turns = [[text.strip() for text in talk.messages] for talk in said]
    size = first_size(record)
    video = is_video(record)
    pointed = [text for talk in turns for text in talk[1::2]] if size and not video else []
    return Shown(
        name=f"{name} {sample}, epoch {epoch}",
        key=record["__key__"],
        pictures=[] if video else [_picture(data) for data in record["pixels"]],
        film=film_strip(record, builder) if video else "",
        talks=[[_short(text) for text in talk] for talk in turns[:TALKS]],
        left=len(turns) - len(turns[:TALKS]),
        points=[point for text in pointed for point in extract_points(text, *size)],
    )


def _picture(data: bytes) -> tuple[str, tuple[int, int]]:
    try:
        image = Image.fromarray(load_image(data))
    except BadSample as error:
        return f"<p>{html.escape(str(error))}</p>", (1, 1)
    size = image.size
    image.thumbnail((SIDE, SIDE))
    return img(np.asarray(image), "JPEG"), size


def _short(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[:LETTERS]} ... ({len(text):,} letters)"
