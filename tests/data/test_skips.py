"""What training makes of samples that it cannot use or must cut: counted skips, numbers that are said, no traceback."""

import dataclasses
import html
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from numpy.random import RandomState

from molmo_ds import architecture as a
from molmo_ds import config as c
from molmo_ds.cli import inspect_shards
from molmo_ds.cli import show_shards as visualize
from molmo_ds.data.order.checks import replay
from molmo_ds.data.order.loader import Mixture, Sequence, Steps, build_stream, sequences
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.tokens import train_tokenizer
from molmo_ds.testing.streams import picture

ASK = {"style": "vqa2", "question": "Which?", "answer": "a boat"}
BAD = {  # what a shard of others may hold: the record's keys, and what is said of them
    "letter": (
        {"annotations": [ASK | {"options": ["a", "b"], "answer_index": "B"}]},
        "'answer_index' is the text 'B'",
    ),
    "null": ({"annotations": [ASK, None]}, "annotation 2 of 2: An annotation is null"),
    "number": ({"annotations": [ASK | {"answer": 5}]}, "'answer' is the number 5"),
    "scale": (
        {"annotations": [{"style": "p", "label": "x", "points": [[1, 1]], "point_scale": "1"}]},
        "'point_scale'",
    ),
    "outside": (
        {"annotations": [{"style": "p", "label": "x", "points": [[99, 1]]}]},
        "lies outside of the picture, 24 x 16",
    ),
    "weight": ({"annotations": [ASK | {"weight": float("nan")}]}, "'weight' is the number nan"),
    "roles": (
        {"annotations": [{"style": "x", "messages": [{"role": "system", "content": "x"}]}]},
        "is a system turn",
    ),
    "marks": (
        {"annotations": [ASK | {"question": "<image><image>Q"}]},
        "begins with 2 picture marks",
    ),
    "place": (
        {"images": [], "annotations": [ASK | {"question": "See <|image|>"}]},
        "the sample has no picture",
    ),
    "nothing": ({"annotations": []}, "no annotations"),
    "frames": ({"annotations": [ASK], "images": ["mp4"], "num_frames": "8"}, "num_frames is '8'"),
    "surrogate": (
        {"annotations": [ASK | {"question": "\ud83d"}]},
        "'question' is the text .* Unicode",
    ),
}


def sample(key: str, record: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    content = {"images": ["jpg"]} | record
    parts = {name: picture(1) for name in content["images"]}
    return key, parts | {"json": json.dumps(content).encode()}


def run(tmp_path: Path, **data: Any) -> c.RunConfig:
    train_tokenizer(["Which? a boat User: Assistant: vqa2:"] * 9, 300, tmp_path / "words")
    model = a.MolmoConfig(
        text=a.TextConfig(vocab_size=400, embedding_size=400),
        vision=a.VisionConfig(image_size=56),
        images=a.ImageConfig(max_crops=2, overlap_margins=(1, 1)),
    )
    stream = {
        "sequence_length": 200,
        "crops_per_sequence": 6,
        "pool_size": 4,
        "num_workers": 0,
        "max_bad_share": 1.0,
    }
    sources = {"x": c.SourceConfig(path=str(tmp_path / "shards"))}
    settings = c.DataConfig(sources=sources, tokenizer=str(tmp_path / "words"), **stream | data)
    return c.RunConfig(model=model, data=settings, global_batch=2, micro_batch=2)


@pytest.fixture
def rotten(tmp_path: Path) -> c.RunConfig:
    sound = (sample(f"good{i}", {"annotations": [ASK | {"weight": None}]}) for i in range(8))
    write_shards(
        [*(sample(name, record) for name, (record, _) in BAD.items()), *sound], tmp_path / "shards"
    )
    return run(tmp_path)


def test_every_bad_sample_is_a_counted_skip(
    rotten: c.RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    mixture = Mixture.open(rotten)
    batches, states = replay(rotten, mixture, 1, 0, 12)
    for name, (_, sentence) in BAD.items():
        told = [
            record.getMessage()
            for record in caplog.records
            if f"skipped '{name}' of" in record.getMessage()
        ]
        assert told and all(re.search(sentence, message) for message in told), name
    assert sum(state["bad"] for state in states.values()) == len(caplog.records)
    assert all(batch.loss_weights.isfinite().all() for step in batches for batch in step)
    with pytest.raises(
        ValueError,
        match=r"\d+ of \d+ samples cannot be used, more than data.max_bad_share=0.0 allows",
    ):
        strict = dataclasses.replace(
            rotten, data=dataclasses.replace(rotten.data, max_bad_share=0.0)
        )
        replay(strict, mixture, 1, 0, 12)


def test_inspection_names_sample_and_key(
    rotten: c.RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rotten.data.sources["x"].path
    with pytest.raises(SystemExit, match=f"{len(BAD)} faults"):
        inspect_shards.main([path])
    out = capsys.readouterr().out
    for name, (_, sentence) in BAD.items():
        [line] = [
            line
            for line in out.splitlines()
            if line.startswith("  FAULT") and f"sample '{name}'" in line
        ]
        # there the fault found first is that a JPEG is no video
        assert re.search(sentence, line) or name == "frames"


def test_a_page_is_drawn_of_what_can_be_used(
    rotten: c.RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rotten.data.sources["x"].path
    words = rotten.data.tokenizer
    overrides = [
        "preset=tiny",
        "data.sequence_length=256",
        "data.crops_per_sequence=16",
        "--tokenizer",
        words,
    ]
    visualize.main([path, str(tmp_path / "page.html"), *overrides])
    assert "samples skipped, the first '" in capsys.readouterr().out
    page = html.unescape(re.sub(r"<[^>]+>", "", (tmp_path / "page.html").read_text())).replace(
        "\xa0", " "
    )
    assert "a boat" in page and "nan" not in page


def test_nothing_but_bad_samples_says_why(tmp_path: Path) -> None:
    write_shards([sample(f"k{i}", BAD["letter"][0]) for i in range(4)], tmp_path / "shards")
    stream = build_stream(run(tmp_path), 0, 1)
    with pytest.raises(
        ValueError,
        match=r"samples cannot be used.* The last: 'k\d' of .*'answer_index' is the text 'B'",
    ):
        next(stream)


def test_what_is_cut_is_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The numbers are those of every sample's length without a limit."""
    texts = ["short", "long " * 60, "longer " * 80]
    made = [{"annotations": [{"style": "x", "question": "Q", "text": text}]} for text in texts]
    write_shards([sample(f"k{i}", record) for i, record in enumerate(made)], tmp_path / "shards")
    config = run(tmp_path, packing="to_max")
    free = Mixture.open(
        dataclasses.replace(config, data=dataclasses.replace(config.data, sequence_length=4000))
    )
    limit = config.data.sequence_length
    shards = ShardSet(config.data.sources["x"].path)
    lengths = [free.builders[0].size(shards.record(i), RandomState(0))[0] for i in range(3)]
    assert lengths[0] < limit < min(lengths[1:])
    mixture = Mixture.open(config)
    drawn: list[int] = []

    def noted() -> Iterator[Sequence]:
        for sequence in sequences(config, mixture, range(2), {}):
            drawn.extend(sample for _, sample, _ in sequence.references)
            yield sequence

    stream = Steps(config, noted(), range(2))
    for _ in range(6):  # two lanes of one sample each
        _, states = next(stream)
    stream.close()
    lost = [lengths[sample] - limit for sample in drawn if lengths[sample] > limit]
    assert len(drawn) == 12 and 2 < len(lost) < 12
    assert sum(state["cut_samples"] for state in states.values()) == len(lost)
    assert sum(state["cut_tokens"] for state in states.values()) == sum(lost)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    seen = sum(state["seen"] for state in states.values())
    whole = f"{len(lost)} of {seen} samples were cut at data.sequence_length={limit} and lost {sum(lost)} tokens"
    assert said[-1] == f"In all, {whole}."
    assert re.search(r"tokens so far; the last: \d+ tokens of 'k[12]' of ", said[-2])
    assert 3 <= len(said) <= 6  # at the first, at every doubling, and at the end
