"""Steps of epochs, alternatives drawn in each epoch, and what a source says of its own samples."""

import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.random import RandomState

from molmo_ds import settings
from molmo_ds.config import PromptConfig, RunConfig, SourceConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.order import epochs
from molmo_ds.data.order.loader import Mixture, build_stream
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.sample.review import Review

SPOKEN = [f"spoken {word}" for word in ("once", "twice", "thrice")]


def records(count: int = 30):
    """A caption and one of three transcripts, without a picture."""
    said = [
        {"style": "long_caption", "text": "written"},
        {"one_of": [{"style": "transcript", "text": text} for text in SPOKEN]},
    ]
    for i in range(count):
        yield f"{i:06d}", {"json": json.dumps({"images": [], "annotations": said}).encode()}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_run: list[str]) -> RunConfig:
    folder = tmp_path_factory.mktemp("epochs")
    write_shards(records(), folder / "captions", samples_per_shard=10)
    words = [f"data.sources.captions.path={folder / 'captions'}", "data.sources.grey=null"]
    return settings.load(
        None,
        [
            *tiny_run,
            *words,
            "data.packing=to_max",
            "data.sequence_length=320",
            f"out={folder / 'out'}",
        ],
    )


def with_data(config: RunConfig, **changes: object) -> RunConfig:
    return replace(config, data=replace(config.data, **changes))


def test_the_references_rounding() -> None:
    # 4 x (9 + 8 - 1) / 8 = 8, where 4 x ceil(9 / 8) were 8 too, and 4 x (9 + 7) // 8
    assert epochs.steps_of(4, 700_000, 128) == 21_878  # (2,800,000 + 508) / 128 = 21,878.97
    assert 4 * -(-700_000 // 128) == 21_876
    assert epochs.steps_of(2, 700_000, 128) == 10_939
    assert epochs.steps_of(0.5, 100, 10) == 5


def test_epochs_become_steps(config: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    asked = replace(config, epochs=3.0)
    with caplog.at_level(logging.INFO):
        made = epochs.in_steps(asked)
    assert (made.epochs, made.max_steps) == (None, 3 * (30 + 3) // 4)
    assert "epochs=3 of 30 samples are max_steps=24" in caplog.text
    assert epochs.in_steps(config) is config
    late = replace(
        asked, optim=replace(config.optim, text=replace(config.optim.text, warmup_steps=25))
    )
    with pytest.raises(ValueError, match="warmup_steps is 25; it must be at most max_steps=24"):
        epochs.in_steps(late)


@pytest.mark.parametrize("packing", ["pack", "knapsack"])
def test_packed_sequences_are_counted(
    config: RunConfig, packing: str, caplog: pytest.LogCaptureFixture
) -> None:
    packed = with_data(replace(config, epochs=8.0), packing=packing)
    mixture = Mixture.open(packed)
    each = epochs.samples_per_sequence(mixture)
    lengths = [mixture.size(0, sample, 0)[0] for sample in range(30)]
    assert 320 / max(lengths) - 1 < each <= 320 / min(lengths)
    with caplog.at_level(logging.INFO):
        made = epochs.in_steps(packed)
    assert made.max_steps == int(8 / each * 33 // 4) and "an estimate" in caplog.text


def test_visits_of_a_sample(config: RunConfig) -> None:
    [line] = epochs.visits(Mixture.open(config), replace(config, max_steps=15))
    assert line == "captions: 100.00% of the samples, 30 of its own, 2.00 visits of each"


def test_one_of_is_drawn_anew_in_each_epoch(config: RunConfig) -> None:
    mixture = Mixture.open(config)
    tokenizer = mixture.builders[0].tokenizer

    def spoken(sample: int, epoch: int) -> str:
        built = mixture.build((0, sample, epoch))
        assert mixture.size(0, sample, epoch)[0] == len(built.input_ids)
        learnt = [built.labels[(built.branch_ids == b) & (built.loss_weights > 0)] for b in (1, 2)]
        texts = [tokenizer.decode(ids.tolist()).strip() for ids in learnt]
        assert "written" in texts
        [found] = [text for text in texts if text != "written"]
        return found

    drawn = [[spoken(sample, epoch) for sample in range(30)] for epoch in range(3)]
    assert drawn[0] != drawn[1] != drawn[2]
    assert set(Counter(sum(drawn, []))) == set(SPOKEN)
    assert max(Counter(sum(drawn, [])).values()) < 50  # of 90: expected 30, deviation 4.5
    again = Mixture.open(config)
    assert [again.build((0, s, 1)).input_ids.tolist() for s in range(5)] == [
        mixture.build((0, s, 1)).input_ids.tolist() for s in range(5)
    ]


def test_a_resumed_stream_on_other_ranks_draws_the_same(config: RunConfig) -> None:
    """12 steps of 4 are 1.6 epochs: alternatives of the second one too."""

    def batches(ranks: int, states: dict | None, first: int, count: int) -> tuple[list, dict]:
        streams = [build_stream(config, rank, ranks, states, first) for rank in range(ranks)]
        found = []
        for _ in range(count):
            made = [next(stream) for stream in streams]
            found.append([batch.input_ids for part, _ in made for batch in part])
            states = {lane: state for _, part in made for lane, state in part.items()}
        return found, states

    whole, _ = batches(1, None, 0, 12)
    head, states = batches(2, None, 0, 7)
    tail, _ = batches(4, states, 7, 5)
    for one, other in zip(whole, head + tail, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_wrong_alternatives_are_said() -> None:
    plain = {"style": "demo", "question": "?", "answer": "."}
    formatter = PromptFormatter(PromptConfig())
    wrong = {
        "'one_of' is the list [], but must be a list": {"one_of": []},
        "'one_of' is the object": {"one_of": plain},
        "nothing else, but there is 'style' too": {"one_of": [plain], "style": "demo"},
        "holds another 'one_of'": {"one_of": [plain, {"one_of": [plain]}]},
        "has nothing to learn": {"one_of": [plain, {"style": "demo", "question": "?"}]},
    }
    for said, annotation in wrong.items():
        record = {"images": [], "annotations": [plain, annotation]}
        with pytest.raises(BadSample, match="annotation 2 of 2: ") as caught:
            for seed in range(10):
                formatter.conversations(record["annotations"], RandomState(seed))
        assert said in str(caught.value)
        if "to learn" not in said:  # which asks, and a review counts it
            with pytest.raises(BadSample, match="annotation 2 of 2: "):
                Review().add(record)


def test_style_and_weight_of_a_source() -> None:
    given = [{"style": "synthetic_qa", "question": "?", "answer": ".", "weight": 0.5}]
    source = SourceConfig(style="user_qa", weight=0.2)
    [own] = PromptFormatter(PromptConfig(system_prompt="style")).conversations(
        given, RandomState(0)
    )
    [changed] = PromptFormatter(PromptConfig(system_prompt="style"), source).conversations(
        given, RandomState(0)
    )
    assert "synthetic_qa: ?" in own.messages[0] and "user_qa: ?" in changed.messages[0]
    assert (own.weight, changed.weight) == (0.5, 0.1)


def test_sources_with_settings_of_their_own(config: RunConfig, tmp_path: Path) -> None:
    """Two uses of one shard set: other styles, weights and roots; the first keeps the run's."""
    path = config.data.sources["captions"].path
    other = SourceConfig(path=path, style="demo", weight=0.25, root_subsegments=False)
    both = with_data(config, sources={"a": SourceConfig(path=path), "b": other})
    mixture = Mixture.open(both)
    first, second = (mixture.build((number, 0, 0)) for number in range(2))
    assert first.loss_weights.max() == pytest.approx(2**-0.5)
    assert second.loss_weights.max() == pytest.approx(0.25)
    for own, answer in {"token_weight": (0.2, 0.2), "root_length": (True, None)}.items():
        changed = with_data(
            config,
            sources={
                "a": SourceConfig(path=path),
                "b": SourceConfig(path=path, **{own: answer[0]}),
            },
        )
        third = Mixture.open(changed).build((1, 0, 0))
        learnt = third.loss_weights[third.branch_ids == 1].count_nonzero()
        # the end of a branch is not counted
        expected = answer[1] or 2**-0.5 * 2 * float(learnt - 1) ** -0.5
        assert third.loss_weights[third.branch_ids == 1].max() == pytest.approx(expected), own
    assert mixture.builders[0].tokenizer is mixture.builders[1].tokenizer
    alone = Mixture.open(with_data(config, sources={"a": SourceConfig(path=path)}))
    name = "tokenizer, prompts or image settings"
    assert alone.stamp[name] == alone.builders[0].fingerprint == mixture.builders[0].fingerprint
    assert mixture.stamp[name] != alone.stamp[name]


def test_crops_of_a_source(config: RunConfig, tiny_run: list[str]) -> None:
    grey = next(word for word in tiny_run if word.startswith("data.sources.grey.path=")).split("=")[
        1
    ]
    words = ["model.images.crop_mode=overlap-and-resize-c2", "model.images.max_crops=5"]
    base = settings.load(None, [*tiny_run, *words, "out=x"])
    few = with_data(base, sources={"grey": SourceConfig(path=grey, max_crops=1)})
    shown = next(i for i in range(9) if ShardSet(grey).record(i)["images"])
    crops = [Mixture.open(one).size(0, shown, 0)[1] for one in (base, few)]
    assert crops[1] == 2 < crops[0]
