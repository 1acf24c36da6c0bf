"""The loss of a captioner on held-out captions: one sequence a picture, every picture once at any number of ranks.

The weighted mean over all tokens of the caption and its end, where the prompt tells a blurred length of the caption
that is drawn from RandomState(6198 + number of the picture): `eval.py --loss --task=pixmo_cap` of the later code of
allenai/molmo.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch
from numpy.random import RandomState
from tqdm import tqdm

from molmo_ds.data.decode import BadSample
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.engine.launch import World
from molmo_ds.eval import log as finished
from molmo_ds.eval.metrics.loss import total_loss
from molmo_ds.eval.run import Job
from molmo_ds.infer.load import Answerer

log = logging.getLogger(__name__)
STYLE = "long_caption"
SEED = 6198
SEQUENCE_LENGTH = 2048  # tokens; a longer sequence loses its end


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums over the learnt tokens of one picture's caption, each times its weight."""

    picture: int  # its number in the shards
    weight: float
    cross_entropy: float
    z_loss: float  # times the coefficient of training
    accuracy: float
    cut: int = 0  # tokens beyond SEQUENCE_LENGTH

    def totals(self) -> dict[str, float]:
        """Under the names of eval/metrics/loss.py."""
        return {
            "total_weight": self.weight,
            "total_loss": self.cross_entropy,
            "total_zloss": self.z_loss,
            "total_accuracy": self.accuracy,
        }


def evaluate(
    job: Job, answerer: Answerer, world: World, overwrite: bool = False
) -> dict[str, Any] | None:
    """The figures of a checkpoint's loss, as `eval/score.py` gives those of replies; None on other ranks than 0.

    Sums go to the job's log picture by picture, so that a run that was killed is resumed. Raises ValueError,
    on all ranks, where the log was made otherwise, a picture has no loss, or --shuffle-seed is asked for.
    """
    provenance = job.provenance
    if provenance.shuffle_seed is not None:
        raise ValueError("The loss is taken over the first pictures; leave --shuffle-seed out.")
    world.agree(lambda: finished.claim(job.results, provenance.values(), overwrite))
    known = world.agree(lambda: [row["picture"] for row in _logged(job)])
    lines = finished.Log(job.results, world.rank)
    for sums in caption_sums(
        answerer, job.shards, world.rank, world.size, provenance.limit, frozenset(known)
    ):
        lines.append({"id": f"{job.label}:{sums.picture}", **dataclasses.asdict(sums)})
    lines.close()
    world.barrier()
    return figures(job, [Sums(**row) for row in _logged(job)]) if world.rank == 0 else None


def _logged(job: Job) -> list[dict[str, Any]]:
    rows = finished.read(job.results, get_type_hints(Sums)).values()
    return [{name: value for name, value in row.items() if name != "id"} for row in rows]


def figures(job: Job, sums: list[Sums]) -> dict[str, Any]:
    """The means in the form of `eval/score.py`. Raises ValueError where another rank's log cannot be seen from here."""
    wanted = pictures(job.shards, job.provenance.limit)
    missing = len(wanted) - len(sums)
    if missing:
        raise ValueError(
            f"{missing} pictures have no line in {job.results}; give a folder that all hosts see."
        )
    found = means(sums)
    error = found["Loss_error"] if len(sums) > 1 else None
    return {
        "task": job.task.name,
        "questions": len(sums),
        "failed": 0,
        "cut": found["cut"],
        "headline": "Loss",
        "metrics": {
            name: {
                "value": found[name],
                "n": len(sums),
                "standard_error": error if name == "Loss" else None,
            }
            for name in ("Loss", "Accuracy", "ZLoss")
        },
        "chance": {},
        "published": None,
        "categories": {},
    }


def pictures(shards: ShardSet, limit: int | None = None) -> list[int]:
    """The numbers of the first `limit` samples that have a caption; ValueError where none has."""
    found = []
    for index in range(len(shards)):
        if len(found) == limit:
            break
        if _captions(shards.record(index)):
            found.append(index)
    if not found:
        raise ValueError(
            f"{shards.path} holds no caption (style {STYLE}); give the shards of pixmo_cap."
        )
    return found


def caption_sums(
    answerer: Answerer,
    shards: ShardSet,
    rank: int = 0,
    size: int = 1,
    limit: int | None = None,
    known: Container[int] = (),
    sequence_length: int = SEQUENCE_LENGTH,
) -> Iterator[Sums]:
    """The sums of this rank's pictures: every `size`-th from `rank` on, without those in `known`.

    One picture runs at a time, so that its sums are the same bits at every number of ranks. Raises ValueError, with the
    sample's key, for a picture that cannot be read or leaves no room for its caption.
    """
    builder = _builder(answerer.builder, sequence_length)
    mine = [index for index in pictures(shards, limit)[rank::size] if index not in known]
    for index in tqdm(mine, "caption loss", unit="picture", dynamic_ncols=True, disable=rank > 0):
        record = shards.read(index)
        record["annotations"] = _captions(record)
        try:
            sample = builder.build(record, RandomState(SEED + index))
        except BadSample as error:
            raise ValueError(f"Sample {record['__key__']} has no loss: {error}") from None
        batch = answerer.batch([sample])
        with torch.inference_mode():
            cross_entropy, z_loss, accuracy = (value.item() for value in answerer.model(batch))
        yield Sums(
            picture=index,
            weight=batch.loss_weights.double().sum().item(),
            cross_entropy=cross_entropy,
            z_loss=z_loss,
            accuracy=accuracy,
            cut=builder.lost["tokens"],
        )


def means(sums: Iterable[Sums]) -> dict[str, float]:
    """Loss, Accuracy and ZLoss: weighted means over all tokens of all pictures, equal in whatever order they come.

    `Loss_error` is the standard error of the loss over pictures, `n` counts them, and `cut` those that lost their end.
    An assertion fails where a picture comes twice.
    """
    rows = list(sums)
    assert len({row.picture for row in rows}) == len(rows), "a picture counts twice"
    found = total_loss([row.totals() for row in rows])
    total = math.fsum(row.weight for row in rows)
    squares = math.fsum((row.cross_entropy - found["Loss"] * row.weight) ** 2 for row in rows)
    found["Loss_error"] = math.sqrt(squares * len(rows) / max(len(rows) - 1, 1)) / total
    found["n"] = len(rows)
    found["cut"] = sum(row.cut > 0 for row in rows)
    if found["cut"]:
        log.warning("%d of %d captions lost their end.", found["cut"], len(rows))
    return found


def _captions(record: dict) -> list[dict]:
    """The caption of a record as a list of one annotation of weight 1, or an empty list."""
    found = [annotation for annotation in record["annotations"] if annotation.get("style") == STYLE]
    return [{name: value for name, value in found[0].items() if name != "weight"}] if found else []


def _builder(builder: SampleBuilder, sequence_length: int) -> SampleBuilder:
    """The same builder with another sequence length."""
    other = copy.copy(builder)
    other.sequence_length = sequence_length
    return other
