"""split_annotations: each annotation once an epoch with its own picture, counted, dealt to any ranks, resumed."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from molmo_ds.batch import Batch
from molmo_ds.cli import show_shards
from molmo_ds.config import RunConfig, SourceConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.order import epochs, loader
from molmo_ds.data.order.lanes import Order
from molmo_ds.data.order.loader import Mixture, build_stream
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.split import SplitSet
from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.data.sample.source_settings import hashed, of_samples
from molmo_ds.data.tokens import train_tokenizer
from molmo_ds.testing.streams import FakeBuilder, picture, run_config

RECORDS = 37
COUNTS = [1 + 7 * i % 5 for i in range(RECORDS)]
COUNTS[11] = 0  # nothing to learn: it is skipped, and said
TOTAL = sum(COUNTS) + 1  # the one without an annotation is a sample that cannot be used


def records() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A picture of its own and 0 to 5 questions, every fourth without a picture."""
    for i, count in enumerate(COUNTS):
        names = ["jpg"] if i % 4 else []
        said = [
            {"style": "vqa2", "question": f"which {i}?", "answer": f"{i} is {k}"}
            for k in range(count)
        ]
        content = json.dumps({"images": names, "annotations": said}).encode()
        yield f"r{i:03d}", {"json": content} | {name: picture(i) for name in names}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    assert len(write_shards(records(), folder, samples_per_shard=9)) == 5
    return folder


class Fake(FakeBuilder):
    """One that refuses what has no annotation, as the real one does."""

    def size(self, record: dict, rng: np.random.RandomState) -> tuple[int, int]:
        if not record["annotations"]:
            raise BadSample("no annotation")
        return super().size(record, rng)


def config(folder: Path, split: bool = True, **data: object) -> RunConfig:
    made = run_config({"asked": folder}, packing="to_max", **data)
    sources = {"asked": SourceConfig(path=str(folder), split_annotations=split)}
    return dataclasses.replace(made, data=dataclasses.replace(made.data, sources=sources))


def test_every_annotation_is_a_sample_with_its_picture(folder: Path) -> None:
    whole = ShardSet(str(folder))
    split = SplitSet(whole, lanes=4)
    assert len(split) == TOTAL and len(whole) == RECORDS
    expected = [
        (number, annotation)
        for number, count in enumerate(COUNTS)
        for annotation in range(max(1, count))
    ]
    assert [split.place(index) for index in range(TOTAL)] == expected
    for index, (number, annotation) in enumerate(expected):
        there = whole.read(number)
        one = split.read(index)
        assert one["annotations"] == there["annotations"][annotation : annotation + 1]
        assert {**one, "annotations": 0} == {**there, "annotations": 0}
        record = split.record(index)
        assert record == {key: one[key] for key in record} and "pixels" not in record
        assert split.locate(index)[1]["key"] == there["__key__"]
    bounds = split.bounds[torch.arange(len(split.bounds)).numpy()].tolist()
    assert bounds == sorted(set(bounds)) and (bounds[0], bounds[-1]) == (0, TOTAL)
    assert split.fingerprint != whole.fingerprint


def test_an_epoch_has_each_annotation_once(folder: Path) -> None:
    mixture = Mixture.open(config(folder, global_batch=4), Fake())
    [order] = mixture.orders
    assert isinstance(order, Order)
    for epoch in (0, 1):
        lanes = [
            [order.at(lane, epoch, i) for i in range(order.length(lane, epoch))]
            for lane in range(4)
        ]
        assert sorted(index for lane in lanes for index in lane) == list(range(TOTAL))
        assert max(map(len, lanes)) - min(map(len, lanes)) < TOTAL / 4
    places = [mixture.sets[0].place(index)[0] for index in lanes[0]]
    assert places != sorted(places), "the questions of a picture follow each other"


def test_epochs_and_visits_count_annotations(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = dataclasses.replace(config(folder, global_batch=4), epochs=2.0)
    warm = {
        part: dataclasses.replace(getattr(asked.optim, part), warmup_steps=1)
        for part in ("connector", "vision", "text")
    }
    tokenizer = folder.parent / "words"
    train_tokenizer(["which 1? 1 is 2 User: Assistant:"], 300, tokenizer)
    asked = dataclasses.replace(
        asked,
        optim=dataclasses.replace(asked.optim, **warm),
        data=dataclasses.replace(
            asked.data, tokenizer=str(tokenizer), sequence_length=512, crops_per_sequence=13
        ),
    )
    with caplog.at_level("INFO"):
        made = epochs.in_steps(asked)
    assert made.max_steps == int(2 * (TOTAL + 3) // 4)
    assert f"epochs=2 of {TOTAL} samples are" in caplog.text
    [line] = epochs.visits(Mixture.open(asked), dataclasses.replace(asked, max_steps=TOTAL))
    assert line == f"asked: 100.00% of the samples, {TOTAL} of its own, 4.00 visits of each"


def answers(steps: list[list[Batch]]) -> list[str]:
    """What FakeBuilder has written of each row: its key and the first annotation's answer."""
    rows = [
        row for step in steps for batch in step for row in zip(batch.input_ids, batch.branch_ids)
    ]
    return ["".join(chr(int(c)) for c, branch in zip(*row) if branch and c > 1) for row in rows]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_ranks_and_workers_and_a_resume_see_one_stream(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three epochs of 4 lanes, from one rank without a worker, from two with two, and stopped after every step."""
    monkeypatch.setattr(loader, "build_builders", lambda config, names: [Fake()] * len(names))
    run = config(folder, global_batch=4, max_bad_share=0.05)
    count = 3 * TOTAL // 4
    alone = build_stream(run, 0, 1)
    expected = [next(alone)[0] for _ in range(count)]
    seen = Counter(answer.rstrip("!") for answer in answers(expected))
    usable = {f"r{i:03d}{i} is {k}" for i, number in enumerate(COUNTS) for k in range(number)}
    assert seen.keys() == usable and set(seen.values()) <= {2, 3, 4}

    two = dataclasses.replace(run, data=dataclasses.replace(run.data, num_workers=2))
    halves = [build_stream(two, rank, 2) for rank in range(2)]
    for step in expected:
        parts = [batch for half in halves for batch in next(half)[0]]
        assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(parts, step, strict=True))
        assert all(torch.equal(a.images, b.images) for a, b in zip(parts, step, strict=True))

    states = None
    for number, step in enumerate(expected[:5]):
        [found, states] = next(build_stream(run, 0, 1, states, number))
        assert answers([found]) == answers([step])
    with pytest.raises(ValueError, match="Since the checkpoint the shards' index changed"):
        build_stream(config(folder, split=False, global_batch=4), 0, 1, states, 5)


def test_a_record_without_an_annotation_is_said(folder: Path) -> None:
    tokenizer = folder.parent / "few words"
    train_tokenizer(["which 1? 1 is 2"], 300, tokenizer)
    run = config(folder, tokenizer=str(tokenizer), sequence_length=512)
    split = SplitSet(ShardSet(str(folder)))
    empty = next(i for i in range(TOTAL) if split.place(i)[0] == 11)
    builder = SampleBuilder(run)
    with pytest.raises(ValueError, match="no annotation"):
        builder.size(split.record(empty), torch.manual_seed(0))


def test_splitting_changes_no_sample(folder: Path) -> None:
    """So that what a checkpoint knows of its builder stays what it was."""
    one = SourceConfig(path="here", weight=0.5, split_annotations=True)
    other = SourceConfig(weight=0.5)
    assert of_samples(one) == other
    tokenizer = folder.parent / "more words"
    train_tokenizer(["which 1? 1 is 2"], 300, tokenizer)
    run = config(folder, tokenizer=str(tokenizer))
    prints = [SampleBuilder(run, None, source).fingerprint for source in (one, other)]
    assert prints[0] == prints[1] != SampleBuilder(run).fingerprint
    before = (
        "path rate group size sampling_rate style weight token_weight root_subsegments root_length"
    )
    assert [*hashed(one)] == [*before.split(), "max_crops"]


def test_a_page_is_drawn_as_a_run_whose_questions_stand_first_takes_it(
    folder: Path, tmp_path: Path
) -> None:
    words = ["preset=tiny", "model.images.max_crops=2", "data.prompts.image_last=true"]
    words += ["data.packing=to_max", "data.sequence_length=256", "--sequences", "6"]
    show_shards.main([str(folder), str(tmp_path / "page.html"), *words])
    assert f"{TOTAL} samples in 5 shards" in (tmp_path / "page.html").read_text()


def test_an_index_that_does_not_count_annotations_is_refused(tmp_path: Path) -> None:
    write_shards(records(), tmp_path / "old", samples_per_shard=20)
    meta = tmp_path / "old/.nv-meta/molmo_ds.json"
    known = json.loads(meta.read_text())
    assert sum(shard["annotations"] for shard in known["shards"].values()) == TOTAL
    for shard in known["shards"].values():
        del shard["annotations"]
    meta.write_text(json.dumps(known))
    assert len(ShardSet(str(tmp_path / "old"))) == RECORDS
    with pytest.raises(ValueError, match=r"does not count annotations.*make_shards.py index .*old"):
        Mixture.open(config(tmp_path / "old"), Fake())
