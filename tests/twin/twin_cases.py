"""Runs on the twin of a GPU, in a process of its own, and leaves its numbers in a file for test_twin.py.

python -m molmo_ds.testing.twin tests/twin/twin_cases.py OUT GROUP ...
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from molmo_ds.batch import Batch
from molmo_ds.config import LoraConfig, RunConfig
from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.testing import synthetic
from molmo_ds.testing.oracle import family, fresh_groups

STEPS = 3
LIMIT = 2.0  # the limit clips some components at some steps
ADAPTERS = LoraConfig(components=("vision", "text"), rank=3, alpha=24.0)


@dataclass(frozen=True)
class Case:
    """One strategy on the twin."""

    strategy: str
    ranks: int = 2
    decoder: str = "qwen2"
    micro_batch: int = 2
    recomputed: str = "none"
    adapters: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"

    @property
    def name(self) -> str:
        """A name for reports."""
        words = [self.strategy, f"{self.ranks} ranks", self.decoder, f"micro {self.micro_batch}"]
        words += [self.recomputed] if self.recomputed != "none" else []
        words += ["LoRA"] if self.adapters else []
        return " ".join([*words, self.precision])


ONE_OF_EACH = [
    Case("zero0"),
    Case("zero1", recomputed="vision"),
    Case("zero2", recomputed="one_in_two"),
    Case("zero2", adapters=True),
    Case("zero3", recomputed="full", micro_batch=1),
    Case("zero3", recomputed="offload"),
    Case("zero3_hpz"),
    Case("zero3_offload", micro_batch=4),
    Case("zero3_sp"),
    Case("zero3_tp"),
    Case("zero3_tp", adapters=True),
    Case("zero2_ep", decoder="olmoe"),
    Case("zero3_ep", decoder="olmoe", recomputed="full"),
    Case("zero3_sp_ep", decoder="olmoe"),
    Case("pipe_zero1"),
    Case("pipe_zero1", adapters=True),
    Case("pipe_dualpipev", micro_batch=1),
    Case("pipe_zero1_ep", decoder="olmoe", ranks=4),
    Case("zero3_ep_tp", decoder="olmoe", ranks=4),
]


def table(everything: bool) -> list[Case]:
    """One of each strategy in both precisions; or with every way to recompute, micro-batch and set of adapters."""
    cases = ONE_OF_EACH
    if everything:
        cases = list(
            dict.fromkeys(
                replace(case, recomputed=recomputed, micro_batch=micro, adapters=adapters)
                for case in ONE_OF_EACH
                for recomputed in ("none", "full", "one_in_two", "vision", "offload")
                for micro in (1, 2)
                for adapters in (False, True)
            )
        )
    return [replace(case, precision=precision) for precision in ("fp32", "bf16") for case in cases]


def config_of(case: Case) -> RunConfig:
    """SGD, whose updates show an error of gradient scale that Adam would hide, with clipping."""
    base = synthetic.config(
        model=family(case.decoder),
        strategy=f"ds_configs/{case.strategy}.json",
        micro_batch=case.micro_batch,
        activation_checkpointing=case.recomputed,
        precision=case.precision,
        max_steps=STEPS,
        lora=ADAPTERS if case.adapters else LoraConfig(),
        check_collectives=True,
    )
    return replace(base, optim=replace(base.optim, max_grad_norm=LIMIT))


def train(world: World, cases: list[Case]) -> dict[Case, dict[str, Any]]:
    """Of each case the log, whole weights and held-out loss, and the waits of the last step by place."""
    from molmo_ds.testing.twin import nccl, waits

    out = {}
    for case in cases:
        fresh_groups()
        config = config_of(case)
        engine = build_engine(config, world)

        def batches(step: int, config: RunConfig = config, engine: Any = engine) -> list[Batch]:
            return synthetic.micro_batches(config, step, engine.data_rank, engine.data_size)

        log = [engine.train_step(batches(step)) for step in range(1, STEPS)]
        last = batches(STEPS)
        with waits.counted() as waited:
            log.append(engine.train_step(last))
        out[case] = {
            "log": log,
            "weights": {name: weight.cpu() for name, weight in engine.full_state()},
            "held_out": engine.eval_loss(batches(10))["loss"],
            "waits": dict(waited),
            "micro_steps": engine.ds["gradient_accumulation_steps"],
            "device": str(next(engine.model.parameters()).device),
            "timeouts": {seconds for _, seconds in nccl.timeouts},
        }
    return out


def main() -> None:
    """Run the cases and write what they left, by case."""
    from molmo_ds.testing.ranks import run_ranks

    out = Path(sys.argv[1])
    everything = "--all" in sys.argv
    chosen = [case for case in table(everything) if all(word in case.name for word in sys.argv[2:] if word != "--all")]
    found: dict[Case, Any] = {}
    groups: dict[Any, list[Case]] = {}
    for case in chosen:
        groups.setdefault(case.ranks, []).append(case)
    for ranks, cases in tqdm(groups.items()):
        began = time.perf_counter()
        results = run_ranks(train, ranks, cases, timeout=60 + 30 * len(cases))
        print(ranks, time.perf_counter() - began, file=sys.stderr)
        for case in cases:
            assert all(rank[case]["log"] == results[0][case]["log"] for rank in results), case
            found[case] = [rank[case] for rank in results]
    torch.save(found, out)


if __name__ == "__main__":
    main()
