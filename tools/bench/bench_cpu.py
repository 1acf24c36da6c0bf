"""A training step on one CPU thread: molmo_ds, with plain ops, its export under transformers, and the machine's limit.

    python tools/bench/bench_cpu.py [--preset reference_cpu] [--steps 6]

All of them run in turn in one process, from equal weights on equal batches, and must find equal losses, those in bf16
(autocast, where the CPU has instructions for it) within its noise. The limit is the time that the step's matrix
products and visible attention take in fp32, each product at the best rate of MKL, oneDNN and our own kernel for its own
shape, measured in turn with the others. CPU seconds (time.process_time), which other jobs change little.
Prints a markdown table: median, lowest and highest.
"""

import argparse
import datetime
import statistics
import time
from collections.abc import Callable

import torch
from bench_answers import exported
from machine_limit import Limit
from step_batches import reference_batches
from stepper import OPTIM, stepper
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from molmo_ds import presets
from molmo_ds.batch import Batch
from molmo_ds.model.molmo import Molmo
from molmo_ds.ops import dispatch
from molmo_ds.ops.linear import library
from molmo_ds.testing.tables import cpu

CPU = torch.device("cpu")
LIMIT = "limit in fp32: products and visible attention"
APART = {"bf16": 1e-3}  # losses of the first step, relative; others 1e-5


def under_transformers(weights: Molmo, batch: Batch) -> Callable[[int], Tensor]:
    """A step of the exported folder as a user of transformers writes it, with torch's AdamW."""
    from transformers import AutoModelForCausalLM

    with exported(weights) as folder:
        model = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, dtype=torch.float32
        ).train()
    rows = batch.input_ids.shape[0]
    crops = len(batch.images) // rows
    # positions count on over the rows; the export's begin again in each
    before = torch.arange(rows).view(-1, 1, 1) * batch.input_ids.shape[1]
    learnt = torch.where(batch.loss_weights > 0, batch.labels, -100)
    inputs = {
        "input_ids": batch.input_ids,
        "images": batch.images.view(rows, crops, *batch.images.shape[1:]),
        "image_masks": batch.image_masks.view(rows, crops, -1),
        "image_input_idx": batch.image_positions.view(rows, crops, -1) - before,
        # transformers shifts labels by itself
        "labels": F.pad(learnt[:, :-1], (1, 0), value=-100),
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=OPTIM.text.lr, betas=OPTIM.betas, eps=OPTIM.eps, weight_decay=0.0
    )

    def step(number: int) -> Tensor:
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def named(step: Callable[[int], Tensor], ops: str | None) -> Callable[[int], Tensor]:
    """The step with these ops (None = those that molmo_ds chooses)."""

    def chosen(number: int) -> Tensor:
        with dispatch.use(ops):
            return step(number)

    return chosen


def measure(
    contenders: dict[str, Callable[[int], Tensor]], steps: int, limit: Limit
) -> dict[str, list[float]]:
    """CPU seconds of each contender's steps and of the limit, in turn; AssertionError where losses differ."""
    took: dict[str, list[float]] = {name: [] for name in (*contenders, LIMIT)}
    for number in tqdm(range(1, steps + 2), desc="steps"):  # the first warms up
        losses = {}
        for name, step in contenders.items():
            began = time.process_time()
            losses[name] = float(step(number))
            if number > 1:
                took[name].append(time.process_time() - began)
        if number > 1:
            took[LIMIT].append(limit.measure())
        if number == 1:  # later ones follow from updates, which each optimizer clips in its own way
            first = next(iter(losses.values()))
            apart = {
                name: loss
                for name, loss in losses.items()
                if abs(loss - first) > APART.get(name[-4:], 1e-5) * first
            }
            assert not apart, f"losses differ from {first}: {apart}"
    return took


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="reference_cpu")
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1024, help="per sequence")
    parser.add_argument("--crops", type=int, default=2, help="per picture")
    parser.add_argument("--steps", type=int, default=6, help="timed, of each")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config = presets.get(given.preset)
    weights = Molmo(config)
    weights.reset_parameters(0)
    batches = reference_batches(config, given.sequences, given.tokens, given.crops)
    contenders = {
        "the export under transformers, torch's AdamW": under_transformers(weights, batches[0]),
        "molmo_ds, MOLMO_DS_OPS=torch": named(stepper(weights, batches, CPU), "torch"),
        "molmo_ds": named(stepper(weights, batches, CPU), None),
    }
    if library.has_bf16():  # else a step takes half a minute
        contenders |= {
            "molmo_ds, MOLMO_DS_OPS=torch, bf16": named(
                stepper(weights, batches, CPU, bf16=True), "torch"
            ),
            "molmo_ds, bf16": named(stepper(weights, batches, CPU, bf16=True), None),
        }
    with dispatch.use("torch"):
        plain = stepper(weights, batches, CPU)
    limit = Limit(lambda: plain(1))
    took = measure(contenders, given.steps, limit)
    least = statistics.median(took[LIMIT])
    tokens = given.sequences * given.tokens
    print(
        f"{cpu()}, {torch.backends.cpu.get_cpu_capability()}, 1 thread, torch {torch.__version__},"
        f" {datetime.date.today()}; {given.preset}, {given.sequences} x {given.tokens} tokens;"
        f" {limit.told(least)}.\n"
    )
    print("| step | CPU-s, median | lowest - highest | tokens per CPU-s | share of the limit |")
    print("|---|---|---|---|---|")
    for name, seconds in took.items():
        middle = statistics.median(seconds)
        print(
            f"| {name} | {middle:.3f} | {min(seconds):.3f} - {max(seconds):.3f} | {tokens / middle:.0f} |"
            f" {least / middle:.0%} |"
        )


if __name__ == "__main__":
    main()
