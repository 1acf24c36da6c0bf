"""Compiled layers compute the same and compile once per kind, whatever the number of crops, also around collectives."""

import shutil

import pytest
import torch

from molmo_ds.config import LoraConfig, RunConfig
from molmo_ds.engine import build_engine, compiled
from molmo_ds.engine.launch import World
from molmo_ds.testing import synthetic
from molmo_ds.testing.everything import EVERYTHING
from molmo_ds.testing.oracle import family, fresh_groups
from molmo_ds.testing.ranks import run_ranks

Case = tuple[str, str, bool]  # strategy, backend ("" = not compiled), adapters
STEPS = (1, 2, 3)


def train(world: World, decoder: str, cases: list[Case], recompute: str = "none") -> list[tuple]:
    """(losses, held-out loss, weights, graphs after each step and the evaluation, graph breaks) of each case."""
    from torch._dynamo.utils import counters

    # no pool of processes in addition to several ranks
    torch._inductor.config.compile_threads = 2 // world.size
    out = []
    for strategy, compiled.BACKEND, adapters in cases:
        torch._dynamo.reset()
        counters.clear()
        fresh_groups()
        config: RunConfig = synthetic.config(
            model=family(decoder), strategy=f"ds_configs/{strategy}.json", global_batch=2, micro_batch=2,
            compile=bool(compiled.BACKEND), activation_checkpointing=recompute,
            lora=LoraConfig(components=("text",), rank=3) if adapters else LoraConfig(),
        )  # fmt: skip
        engine = build_engine(config, world)
        batches = {
            step: synthetic.micro_batches(config, step, engine.data_rank, engine.data_size)
            for step in STEPS
        }
        assert len({len(batch.images) for (batch,) in batches.values()}) > 1, (
            "the number of crops must vary"
        )
        losses, graphs = [], []
        for step in STEPS:
            losses.append(engine.train_step(batches[step])["loss"])
            graphs.append(counters["stats"]["unique_graphs"])
        held_out = engine.eval_loss(batches[1])["loss"]
        graphs.append(counters["stats"]["unique_graphs"])
        out.append(
            (losses, held_out, dict(engine.full_state()), graphs, dict(counters["graph_break"]))
        )
    return out


def check(runs: list[tuple], graphs: int) -> None:
    """The first is not compiled, the others make `graphs` graphs in training and as many in evaluation."""
    plain, *fast = runs
    assert plain[3] == [0] * 4
    for losses, held_out, weights, made, breaks in fast:
        assert [*losses, held_out] == pytest.approx([*plain[0], plain[1]], abs=1e-5)
        assert made == [graphs] * 3 + [2 * graphs] and not breaks, (
            "compiled again, or cut in pieces"
        )
        for name, weight in weights.items():
            torch.testing.assert_close(weight, plain[2][name], atol=3e-6, rtol=1e-5, msg=name)


def test_a_graph_for_each_kind_of_layer() -> None:
    cases = [("zero1", "", False), ("zero1", "aot_eager", False), ("zero3", "aot_eager", False)]
    plain, whole, split = run_ranks(train, 1, "qwen2", cases, timeout=240)[0]
    check([plain, whole], 2)  # a ViT block and a decoder layer
    check([plain, split], 4)  # attention and MLP of each


def test_layers_that_are_computed_again() -> None:
    cases = [("zero1", "", False), ("zero1", "aot_eager", False), ("zero3", "aot_eager", False)]
    plain, whole, split = run_ranks(train, 1, "qwen2", cases, "full", timeout=240)[0]
    check([plain, whole], 2)
    check([plain, split], 4)


AMONG_RANKS = [
    ("qwen2", "zero3_sp", False),
    # whose norm over all heads is a collective between two projections
    ("olmo2", "zero3_tp", False),
]
if EVERYTHING:
    AMONG_RANKS += [("qwen2", "zero3_tp", True)]


@pytest.mark.parametrize(("decoder", "strategy", "adapters"), AMONG_RANKS)
def test_collectives_are_part_of_the_graph(decoder: str, strategy: str, adapters: bool) -> None:
    cases = [(strategy, "", adapters), (strategy, "aot_eager", adapters)]
    for rank in run_ranks(train, 2, decoder, cases, timeout=240):
        check(rank, 4)


def test_a_stage_compiles_the_kinds_it_holds() -> None:
    first, last = run_ranks(
        train, 2, "qwen2", [("pipe_zero1", "", False), ("pipe_zero1", "aot_eager", False)]
    )
    check(first, 2)
    check(last, 1)  # decoder layers only


@pytest.mark.everything  # g++ compiles for 44 CPU-seconds
@pytest.mark.skipif(
    shutil.which("g++") is None, reason="no C++ compiler (g++), which inductor needs on a CPU"
)
def test_by_inductor() -> None:
    cases = [("zero1", "", False), ("zero1", "inductor", False)]
    check(run_ranks(train, 1, "qwen2", cases, timeout=400)[0], 2)
