"""Measures answering on this machine, both sides of every comparison in one run:

    python tools/bench/bench_answers.py                 all of them, with a decoder of 25 million parameters
    python tools/bench/bench_answers.py slots --large   one of them, with 100 million

slots: answers of geometrically distributed length, in slots and in fixed batches, also in such that lose rows when half
of them have ended, as those of generate() did before it had slots. trees: five questions about each picture, as message
trees and one by one. transformers: prefill and decode of the exported folder's own generate() and of slots, tokens
compared, and prefill beside the time of its products and visible attention alone.

CPU seconds (time.process_time), which other jobs on the machine hardly change. Prints a markdown table.
"""

import argparse
import datetime
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine_limit import Limit
from tqdm import tqdm

from molmo_ds.architecture import (
    ConnectorConfig,
    ImageConfig,
    MolmoConfig,
    TextConfig,
    VisionConfig,
)
from molmo_ds.batch import Sample, windows_of
from molmo_ds.data.order.packing import collate
from molmo_ds.engine.strategy import Limits
from molmo_ds.hub.export import to_hub
from molmo_ds.hub.load import write_weights
from molmo_ds.infer.answers import answer
from molmo_ds.infer.generate import Session
from molmo_ds.infer.load import by_columns
from molmo_ds.infer.options import Options
from molmo_ds.infer.question import Question
from molmo_ds.infer.replica import Replica
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing.tables import cpu
from molmo_ds.testing.text_sample import text_sample
from molmo_ds.weights.slices import fill
from molmo_ds.weights.source import open_source

ROUNDS = 5
NEVER = 10**6  # no word: answers have the length that is asked of them
COLUMNS = ("what", "molmo_ds", "other side", "ratio", "asked")
Row = tuple[str, str, str, float, float]


@dataclass(frozen=True)
class Size:
    """Of a measurement."""

    width: int
    layers: int
    words: int
    prompts: int = 32
    batch: int = 8
    crops: int = 14  # of the picture of a tree
    new: int = 24  # tokens of an answer compared with transformers'


SIZES = {"tiny": Size(32, 1, 128, prompts=8, batch=4, crops=1, new=3)}
SIZES |= {"small": Size(512, 8, 8192), "large": Size(768, 12, 8192)}


def network(size: Size) -> Molmo:
    """A Qwen2 decoder with a small tower with crops of 64 patches, 16 pooled."""
    text = TextConfig(
        model_type="qwen2",
        vocab_size=size.words,
        embedding_size=size.words,
        additional_vocab_size=128,
        hidden_size=size.width,
        intermediate_size=size.width * 11 // 4,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // 16 if size.width < 64 else size.width // 64,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rope_theta=1e4,
        initializer_range=0.05,
    )
    inner = min(256, size.width)
    vision = VisionConfig(
        model_type="clip",
        image_size=112,
        patch_size=14,
        hidden_size=inner,
        intermediate_size=2 * inner,
        num_hidden_layers=4,
        num_attention_heads=4,
        feature_layers=(-2, -3),
    )
    images = ImageConfig(max_crops=4, overlap_margins=(1, 1))
    model = Molmo(MolmoConfig(text=text, vision=vision, connector=ConnectorConfig(), images=images))
    model.reset_parameters(0)
    return model.eval()


def prompt(config: MolmoConfig, crops: int, words: int, seed: int, picture: int) -> Sample:
    """BOS and crops as the prefix, then a question."""
    pooled = 16
    prefix = 1 + pooled * crops
    drawn = np.random.RandomState(seed)
    pixels = np.random.RandomState(picture).randint(0, 256, (crops, 112, 112, 3), dtype=np.uint8)
    image_token = config.text.vocab_size + 2
    ids = np.concatenate(
        ([1], np.full(prefix - 1, image_token), drawn.randint(2, config.text.vocab_size, words))
    )
    return replace(
        text_sample(torch.from_numpy(ids.astype(np.int64))),
        branch_ids=(torch.arange(len(ids)) >= prefix).int(),
        images=torch.from_numpy(pixels),
        image_masks=torch.ones(crops, 64),
        windows=windows_of(crops, 8, 2),
        image_positions=1 + torch.arange(prefix - 1),
    )


def seconds(work: Callable[[], None]) -> float:
    """CPU seconds of it."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def slots(model: Molmo, size: Size) -> Iterator[Row]:
    """Answers of geometric length: mean 19, at most 60."""
    source = np.random.RandomState(0)
    lengths = np.minimum(source.geometric(1 / 19, size.prompts), 60).tolist()
    samples = [prompt(model.config, 2, 94 + i * 37 % 68, i, i) for i in range(size.prompts)]
    replica = Replica.of(model, NEVER, Limits(slots=size.batch, slot_tokens=300))
    asked = [
        Question(name=str(i), prompt=sample, options=Options(max_new_tokens=length))
        for i, (sample, length) in enumerate(zip(samples, lengths))
    ]
    ours: dict[int, list[int]] = {}
    mine = seconds(
        lambda: ours.update({int(one.name): list(one.token_ids) for one in answer(replica, asked)})
    )
    useful = sum(lengths) - len(lengths)
    for name, smaller in (("until all have ended", False), ("halved when half have ended", True)):
        found: dict[int, list[int]] = {}
        steps = 0
        begun = time.process_time()
        for first in range(0, size.prompts, size.batch):
            rows = slice(first, first + size.batch)
            steps += fixed_batch(model, samples[rows], lengths[rows], first, found, smaller)
        theirs = time.process_time() - begun
        assert found == ours, "the two sides answered differently"
        yield (
            f"{size.prompts} answers, mean {np.mean(lengths):.0f} tokens, {useful} useful row-steps of decoding",
            f"slots: {mine:.1f} CPU-s, {replica.row_steps} row-steps",
            f"batches of {size.batch} {name}: {theirs:.1f} CPU-s, {steps} row-steps",
            theirs / mine,
            1.25,
        )


@torch.no_grad()
def fixed_batch(
    model: Molmo,
    samples: list[Sample],
    lengths: list[int],
    first: int,
    found: dict[int, list[int]],
    smaller: bool,
) -> int:
    """Answer together until all have ended, leaving rows out when half have if `smaller`; row-steps of decoding."""
    batch = collate(
        [[sample] for sample in samples], max(len(sample.input_ids) for sample in samples)
    )
    rows = torch.arange(len(samples))
    steps = 0
    session = Session(model, batch, max(lengths))
    hidden = session.first()
    while True:
        tokens = session.logits(hidden).argmax(-1)
        for row, token in zip(rows.tolist(), tokens.tolist()):
            made = found.setdefault(first + row, [])
            if len(made) < lengths[row]:
                made.append(token)
        running = torch.tensor([len(found[first + row]) < lengths[row] for row in rows.tolist()])
        if not running.any():
            return steps
        if smaller and int(running.sum()) <= len(rows) // 2:
            session.slots.select(running.nonzero()[:, 0])
            rows = rows[running]
            tokens = tokens[running]
        steps += len(rows)
        hidden = session.next(tokens)


def trees(model: Molmo, size: Size) -> Iterator[Row]:
    """Five questions about each of four pictures; the pictures are encoded once or five times as well."""
    samples = [prompt(model.config, size.crops, 8 + i * 5 % 14, i, i // 5) for i in range(20)]
    options = Options(max_new_tokens=6)
    together = [
        Question(name=str(i), prompt=sample, options=options) for i, sample in enumerate(samples)
    ]
    sides = {}
    for name, asked in (
        ("trees", together),
        ("one by one", [apart(question) for question in together]),
    ):
        replica = Replica.of(model, NEVER, Limits(slots=20, slot_tokens=512))
        out: dict[str, tuple[int, ...]] = {}
        took = seconds(
            lambda r=replica, a=asked, o=out: o.update(
                {one.name: one.token_ids for one in answer(r, a)}
            )
        )
        sides[name] = took, replica.prefilled, out
    assert sides["trees"][2] == sides["one by one"][2], "the two sides answered differently"
    told = {
        name: f"{name}: {took:.1f} CPU-s, {tokens} tokens prefilled"
        for name, (took, tokens, _) in sides.items()
    }
    ratio = sides["one by one"][0] / sides["trees"][0]
    yield (
        f"5 questions for each of 4 pictures of {16 * size.crops} tokens",
        told["trees"],
        told["one by one"],
        ratio,
        3.0,
    )


def apart(question: Question) -> Question:
    """The same question, whose picture lies in its branch and is shared with none."""
    sample = question.prompt
    return replace(question, prompt=replace(sample, branch_ids=torch.zeros_like(sample.branch_ids)))


def beside_transformers(model: Molmo, size: Size) -> Iterator[Row]:
    """The exported folder's generate() on a batch, padded, and slots; then the same of one prompt alone."""
    from transformers import AutoModelForCausalLM

    with exported(model) as folder:
        model = as_loaded(folder.with_name("ours"), model.config)
        other = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, dtype=torch.float32
        ).eval()
    samples = [prompt(model.config, 2, 94 + i * 37 % 68, i, i) for i in range(size.batch)]
    yield from beside(model, other, samples, size)
    yield from beside(model, other, samples[:1], size)


def beside(model: Molmo, other: Any, samples: list[Sample], size: Size) -> Iterator[Row]:
    """Prefill and decode of these prompts, by slots and by the export; best of ROUNDS, in turn."""
    from transformers import GenerationConfig

    batch = len(samples)
    inputs = right_padded(samples)
    width = inputs["input_ids"].shape[1]
    took: dict[tuple[str, int], float] = {}
    tokens: dict[str, list[list[int]]] = {}
    least = math.inf
    for new in (1, size.new + 1):
        options = GenerationConfig(
            max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        asked = [
            Question(name=str(i), prompt=sample, options=Options(max_new_tokens=new))
            for i, sample in enumerate(samples)
        ]

        def ours(asked: list[Question] = asked) -> None:
            replica = Replica.of(model, NEVER, Limits(slots=batch, slot_tokens=300))
            found = {int(one.name): list(one.token_ids) for one in answer(replica, asked)}
            tokens["ours"] = [found[i] for i in range(len(samples))]

        def theirs(options: GenerationConfig = options) -> None:
            tokens["theirs"] = other.generate_from_batch(inputs, options)[:, width:].tolist()

        limit = Limit(ours) if new == 1 else None
        for _ in range(ROUNDS):
            for name, work in (("ours", ours), ("theirs", theirs)):
                took[name, new] = min(took.get((name, new), math.inf), seconds(work))
            if limit is not None:
                least = min(least, limit.measure())
        assert tokens["ours"] == tokens["theirs"], "the two sides answered differently"
    prompts = sum(len(sample.input_ids) for sample in samples)
    for what, count, of in (
        ("prefill", prompts, lambda name: took[name, 1]),
        ("decode", batch * size.new, lambda name: took[name, size.new + 1] - took[name, 1]),
    ):
        mine = count / of("ours")
        them = count / of("theirs")
        label = f"{what}, {batch} prompts of {prompts // batch} tokens on average, tokens per CPU-s"
        yield (
            label,
            f"slots: {mine:.0f}",
            f"transformers on the export: {them:.0f}",
            mine / them,
            1.0 if what == "prefill" else 1.25,
        )
        if what == "prefill":
            most = prompts / least
            yield label, f"slots: {mine:.0f}", f"the machine's limit: {most:.0f}", mine / most, 0.85


def as_loaded(folder: Path, config: MolmoConfig) -> Molmo:
    """The network as `molmo-ds evaluate` and `serve` read it."""
    with torch.device("meta"):
        model = Molmo(config)
    source = open_source(folder)
    fill(model, source, by_columns=by_columns(source.shapes, "fp32", torch.device("cpu")))
    return model.eval()


@contextmanager
def exported(model: Molmo) -> Iterator[Path]:
    """The released-format folder of a model; beside it lies `ours`, its folder of weights."""
    with tempfile.TemporaryDirectory() as folder:
        state = model.state_dict()
        write_weights(Path(folder) / "ours", model.config, iter(state.items()), None, len(state))
        to_hub(Path(folder) / "ours", Path(folder) / "theirs", "fp32")
        yield Path(folder) / "theirs"


def right_padded(samples: list[Sample]) -> dict[str, torch.Tensor]:
    """What the export's generate_from_batch takes; -1 is padding."""
    most = max(len(sample.input_ids) for sample in samples)
    ids = torch.full((len(samples), most), -1)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.input_ids)] = sample.input_ids
    return {
        "input_ids": ids,
        "images": torch.stack([sample.images for sample in samples]),
        "image_masks": torch.stack([sample.image_masks for sample in samples]),
        "image_input_idx": torch.stack(
            [sample.image_positions.view(len(sample.images), -1) for sample in samples]
        ),
    }


MEASUREMENTS = {"slots": slots, "trees": trees, "transformers": beside_transformers}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="*", default=[], help=f"by default all of {', '.join(MEASUREMENTS)}"
    )
    parser.add_argument(
        "--large", action="store_const", const="large", dest="size", default="small"
    )
    parser.add_argument(
        "--tiny", action="store_const", const="tiny", dest="size", help="to try the tool"
    )
    given = parser.parse_args(arguments)
    unknown = [name for name in given.what if name not in MEASUREMENTS]
    if unknown:
        parser.error(f"there is no measurement '{unknown[0]}'; name {', '.join(MEASUREMENTS)}.")
    torch.set_num_threads(1)
    size = SIZES[given.size]
    model = network(size)
    decoder = (
        sum(
            p.numel() for name, p in model.named_parameters() if name.startswith(("layers", "head"))
        )
        / 1e6
    )
    print(
        f"{cpu()}, 1 thread, fp32, decoder of {decoder:.0f} million parameters, {datetime.date.today()}\n"
    )
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name in tqdm(given.what or MEASUREMENTS, desc="measurements", dynamic_ncols=True):
        for what, mine, theirs, ratio, asked in MEASUREMENTS[name](model, size):
            tqdm.write(f"| {what} | {mine} | {theirs} | {ratio:.2f} | {asked} |")


if __name__ == "__main__":
    main()
