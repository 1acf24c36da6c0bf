"""The stream of batches: the same on any number of ranks and workers, stopped and resumed anywhere."""

import dataclasses
import itertools
import json
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from molmo_ds import presets
from molmo_ds.architecture import ImageConfig
from molmo_ds.batch import last_tokens
from molmo_ds.config import RunConfig
from molmo_ds.data.order.checks import identical, replay
from molmo_ds.data.order.lanes import generator
from molmo_ds.data.order.loader import (
    Mixture,
    Steps,
    build_stream,
    check_states,
    rank_lanes,
    sequences,
)
from molmo_ds.data.order.packing import collate, merge
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.tokens import train_tokenizer
from molmo_ds.testing.streams import FakeBuilder, make_shards, picture, records, run_config

LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 3), (8, 1)]  # ranks x workers
STEPS = 12

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stream")
    return {"a": make_shards(folder / "a", 60, "a"), "b": make_shards(folder / "b", 31, "b", 9)}


@pytest.fixture(scope="module")
def config(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The real builder: overlapping crops, a trained tokenizer, message trees in prompts."""
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["which word is it? User: Assistant: word word"], 300, tokenizer)
    images = ImageConfig(max_crops=3, overlap_margins=(2, 2))
    model = dataclasses.replace(
        presets.tiny(),
        vision=dataclasses.replace(presets.tiny().vision, patch_size=7),
        images=images,
    )
    run = run_config(
        folders,
        tokenizer=str(tokenizer),
        sequence_length=192,
        crops_per_sequence=10,
        global_batch=8,
    )
    return dataclasses.replace(run, model=model)


@pytest.fixture(scope="module")
def mixture(config: RunConfig) -> Mixture:
    return Mixture.open(config)


@pytest.fixture(scope="module")
def whole(config: RunConfig, mixture: Mixture) -> list:
    return replay(config, mixture, 1, 0, STEPS)[0]


def test_stop_on_one_layout_and_resume_on_another_is_exact(
    config: RunConfig, mixture: Mixture, whole: list
) -> None:
    draw = np.random.RandomState(7)
    resumed = [LAYOUTS[i] for i in (3, 5, 0, 6, 1, 4, 2)]
    assert (
        any(len(batch.images) > 8 for batch in whole[0]) or sum(len(b.images) for b in whole[0]) > 8
    )
    for first, second in zip(LAYOUTS, resumed):
        stop = int(draw.randint(1, STEPS))
        head, states = replay(config, mixture, *first, stop)
        assert identical(head, whole[:stop]), f"{first} differs from one process"
        states = {int(lane): state for lane, state in json.loads(json.dumps(states)).items()}
        tail, _ = replay(config, mixture, *second, STEPS - stop, states, stop)
        assert identical(head + tail, whole), f"stopped on {first} at {stop}, resumed on {second}"


def test_comparison_can_fail(whole: list) -> None:
    assert not identical(whole[:-1], whole[1:])
    pixels = whole[0][0].images.clone()
    pixels[0, 0, 0, 0] ^= 1
    assert not identical([[whole[0][0].replace(images=pixels), *whole[0][1:]], *whole[1:]], whole)


def test_stream_is_what_its_parts_say(config: RunConfig, mixture: Mixture) -> None:
    """Every document of a batch equals the sample built by hand from the shard."""
    stream = sequences(config, mixture, rank_lanes(config, 0, 1), {})
    for _ in range(6):
        sequence = next(stream)
        pack = []
        for name, sample, epoch in sequence.references:
            place = mixture.names.index(name)
            rng = generator(config.data.seed, name, "sample", sample, epoch)
            pack.append(mixture.builders[place].build(mixture.sets[place].read(sample), rng))
        expected = collate([pack], config.data.sequence_length)
        got = merge([sequence.row])
        assert all(torch.equal(a, b) for a, b in zip(got.tensors(), expected.tensors()))


def test_stream_leaves_the_global_generator_alone(config: RunConfig, mixture: Mixture) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    replay(config, mixture, 1, 2, 1)
    assert (
        torch.equal(torch.get_rng_state(), before[0])
        and np.random.get_state()[1].tolist() == before[1]
    )


def test_workers_outlive_the_signals_of_a_scheduler(
    config: RunConfig, mixture: Mixture, whole: list
) -> None:
    two = with_data(config, num_workers=2)
    stream = Steps(two, sequences(two, mixture, rank_lanes(two, 0, 1), {}), rank_lanes(two, 0, 1))
    batches = [next(stream)[0]]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker, number in itertools.product(
        workers, (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)
    ):
        os.kill(worker.pid, number)
    batches += [next(stream)[0] for _ in range(STEPS - 1)]
    assert identical(batches, whole)
    began = time.monotonic()
    stream.close()
    del stream
    for worker in workers:
        worker.join(10)
    assert not any(worker.is_alive() for worker in workers) and time.monotonic() - began < 10


def test_state_is_small_json(config: RunConfig, mixture: Mixture) -> None:
    _, states = replay(config, mixture, 2, 0, 3)
    assert sorted(states) == list(range(8))
    assert max(len(json.dumps(state)) for state in states.values()) < 1024


def test_micro_batches_are_the_same_rows(config: RunConfig, mixture: Mixture, whole: list) -> None:
    fours = dataclasses.replace(config, micro_batch=4)
    batches, _ = replay(fours, mixture, 2, 0, 2)
    for together, apart in zip(batches, whole):
        assert [len(batch.input_ids) for batch in together] == [4, 4]
        assert torch.equal(
            torch.cat([b.input_ids for b in together]), torch.cat([b.input_ids for b in apart])
        )
        real = [
            torch.cat([b.images[last_tokens(b) >= 0] for b in side]) for side in (together, apart)
        ]
        assert torch.equal(*real)
        places = [b.image_positions[b.image_positions >= 0] for b in together]
        # image tokens
        assert all((b.input_ids.flatten()[p] >= 512).all() for b, p in zip(together, places))


@pytest.mark.parametrize(("packing", "lengths"), [("to_max", {192}), ("to_128", {128})])
def test_padded_modes_hold_one_sample_a_row(
    config: RunConfig, packing: str, lengths: set[int]
) -> None:
    padded = dataclasses.replace(
        config, micro_batch=2, data=dataclasses.replace(config.data, packing=packing)
    )
    batches, _ = replay(padded, Mixture.open(padded), 1, 0, 8)
    rows = [batch for step in batches for batch in step]
    assert all(
        batch.document_ids.max() == 1 and (batch.document_ids[:, 0] == 1).all() for batch in rows
    )
    assert {batch.input_ids.shape[1] for batch in rows} == lengths


def test_build_stream_needs_only_a_configuration(config: RunConfig, whole: list) -> None:
    stream = build_stream(config, 1, 2)
    (micro_batches, states), _ = next(stream), next(stream)
    assert identical([micro_batches], [whole[0][4:]])
    assert sorted(states) == [4, 5, 6, 7]
    assert identical([next(build_stream(config, 1, 2, states, 1))[0]], [whole[1][4:]])


def with_data(config: RunConfig, **changes: object) -> RunConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def test_a_state_of_another_stream_is_refused(
    config: RunConfig, folders: dict[str, Path], tmp_path: Path
) -> None:
    fake = FakeBuilder()
    _, states = replay(config, Mixture.open(config, fake), 1, 0, 1)
    lanes = rank_lanes(config, 0, 1)
    check_states(Mixture.open(config, fake), lanes, states, 1)
    sources = config.data.sources
    other = make_shards(tmp_path, 32, "b", 9)
    changed = {
        "data.seed": with_data(config, seed=4),
        "sources and their rates": with_data(config, sources={"a": sources["a"]}),
        "shards' index": with_data(
            config,
            sources={
                "a": sources["a"],
                "b": dataclasses.replace(sources["b"], path=str(other), size=31),
            },
        ),
        "packing": with_data(config, pool_size=11),
        "global_batch": dataclasses.replace(config, global_batch=4),
    }
    for what, new in changed.items():
        with pytest.raises(ValueError, match=f"Since the checkpoint .*{what} changed .*init_from"):
            check_states(Mixture.open(new, fake), rank_lanes(new, 0, 1), states, 1)
    fake.fingerprint = "another tokenizer"
    with pytest.raises(ValueError, match="tokenizer, prompts or image settings changed"):
        check_states(Mixture.open(config, fake), lanes, states, 1)
    with pytest.raises(ValueError, match="no data state of lane 0"):
        build_stream(config, 0, 1, None, start_step=5)


def test_settings_that_cannot_be(
    config: RunConfig, folders: dict[str, Path], tmp_path: Path
) -> None:
    def opened(sentence: str, new: RunConfig) -> None:
        with pytest.raises(ValueError, match=sentence):
            build_stream(new, 0, 2)

    opened("must be a multiple of ranks x micro_batch", dataclasses.replace(config, micro_batch=3))
    opened("'b' has 31 samples, fewer than the 32", dataclasses.replace(config, global_batch=32))
    opened(
        "data.sources.a.path is empty",
        with_data(config, sources={"a": dataclasses.replace(config.data.sources["a"], path="")}),
    )
    opened(
        "no shards at",
        with_data(
            config,
            sources={"a": dataclasses.replace(config.data.sources["a"], path=str(tmp_path / "no"))},
        ),
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_over_the_crop_budget_is_one_sentence(config: RunConfig, workers: int) -> None:
    tight = with_data(config, crops_per_sequence=1, num_workers=workers)
    with pytest.raises(
        ValueError, match=r"^Sample '.*' has \d+ crops, but data.crops_per_sequence is 1; raise it"
    ):
        next(build_stream(tight, 0, 1))


def test_bad_pictures_are_skipped_counted_logged_and_refused_above_the_share(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def damaged() -> object:
        for i, (key, parts) in enumerate(records(40)):
            if i == 11:
                parts["jpg"] = picture(1, 64, 64)[:-90]  # the header is sound, the end is missing
            if i == 12:
                parts["jpg"] = b"no picture at all"
            yield key, parts

    write_shards(damaged(), tmp_path)
    assert len(ShardSet(str(tmp_path))) == 40
    broken = with_data(run_config({"x": tmp_path}, global_batch=4), max_bad_share=0.01)
    whole, states = replay(broken, Mixture.open(broken, FakeBuilder()), 1, 0, 8)
    assert (
        f"skipped 's00011' of {tmp_path}/shard-000000.tar: The picture cannot be decoded"
        in caplog.text
    )
    assert (
        f"skipped 's00012' of {tmp_path}/shard-000000.tar: Its jpg is no picture that can be read"
        in caplog.text
    )
    assert all("skipped" in record.message for record in caplog.records) and caplog.records
    assert sum(state["bad"] for state in states.values()) == len(caplog.records) >= 2
    head, middle = replay(broken, Mixture.open(broken, FakeBuilder()), 2, 1, 4)
    tail, after = replay(broken, Mixture.open(broken, FakeBuilder()), 1, 2, 4, middle, 4)
    assert identical(head + tail, whole) and after == states
    with pytest.raises(ValueError, match="max_bad_share=0.0 allows; the last: 's0001[12]' of "):
        replay(with_data(broken, max_bad_share=0.0), Mixture.open(broken, FakeBuilder()), 1, 1, 8)
    assert caplog.records[0].levelno == logging.WARNING
