"""Counts the collectives of a step at real size: the real engine and DeepSpeed, fake tensors, made-up ranks.

    python tools/bench/scale_collectives.py [--only zero3 ...] [--models molmo_7b_d] [--layers 2]

Each case is a process of its own. The third step is counted; it must repeat the second, call by call. Prints a table.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

from molmo_ds.testing.tables import ROOT

TOKENS, CROPS = 2304, 13  # of a sequence


@dataclass(frozen=True)
class Case:
    """A strategy with a model on so many made-up ranks."""

    strategy: str
    model: str
    ranks: int
    micro_steps: int = 1
    layers: int = 0  # of the decoder, 0 = all

    def config(self) -> Any:
        """The run: one sequence a micro-step."""
        from molmo_ds import presets
        from molmo_ds.config import RunConfig
        from molmo_ds.engine.strategy import read_strategy

        path = str(ROOT / f"ds_configs/{self.strategy}.json")
        replicas = read_strategy(path).data_parallel_size(self.ranks)
        model = presets.get(self.model)
        if self.layers:
            model = replace(model, text=replace(model.text, num_hidden_layers=self.layers))
            model = replace(model, vision=replace(model.vision, num_hidden_layers=10))
        return replace(
            RunConfig(),
            model=model,
            strategy=path,
            global_batch=replicas * self.micro_steps,
            micro_batch=1,
            precision="bf16",
            activation_checkpointing="full",
        )


CASES = (
    *(Case(name, "molmo_7b_d", 8) for name in ("zero0", "zero1", "zero2", "zero3", "zero3_hpz")),
    *(Case(name, "molmo_7b_d", 8) for name in ("zero3_sp", "zero3_tp")),
    Case("zero3", "molmo_7b_d", 8, micro_steps=2),
    Case("zero3", "molmo_72b", 64),
    Case("zero3", "molmo_72b", 1024),
    Case("zero3_ep", "molmoe_1b", 256),
    Case("zero2_ep", "molmoe_1b", 256),
)


def count(case: Case) -> dict[str, Any]:
    """The tally of the third step, and whether the second was the same, call by call."""
    from molmo_ds.engine import build_engine
    from molmo_ds.testing import collectives
    from molmo_ds.testing.twin.counts import fake_batch

    world = collectives.pretend(case.ranks)
    config = case.config()
    with collectives.without_memory():
        engine = build_engine(config, world)
        steps = []
        for _ in range(3):
            parts = [fake_batch(config.model, 1, TOKENS, CROPS, TOKENS // 2)] * case.micro_steps
            with collectives.Recorder() as recorder:
                engine.train_step(parts)
            steps.append(recorder.calls)
    found = collectives.tally(steps[-1])
    return {
        "tally": found,
        "repeats": steps[1] == steps[2],
        "objects": sum(call.of_objects for call in steps[-1]),
        "calls": [asdict(call) for call in steps[-1]],
    }


def counted(case: Case) -> dict[str, Any]:
    """`count` in a process of its own."""
    words = [sys.executable, __file__, "--case", json.dumps(vars(case))]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(case: Case, found: dict[str, Any]) -> str:
    """A line of the table."""
    cells = [case.strategy, case.model, f"{case.ranks:,}", str(case.micro_steps)]
    for kind in ("all_gather", "reduce_scatter", "all_reduce", "reduce", "broadcast", "all_to_all"):
        calls, size = found["tally"].get(kind, (0, 0))
        cells.append(f"{calls:,} ({size / 1e9:.3g} GB)" if calls else "-")
    return f"| {' | '.join([*cells, str(found['objects'])])} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", help="strategies")
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--layers", type=int, default=0, help="of the decoder; 10 of the ViT then")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(count(Case(**json.loads(args.case)))), flush=True)
        os._exit(0)  # DeepSpeed would wait for ranks that are not there
    cases = [case for case in CASES if not args.only or case.strategy in args.only]
    cases = [case for case in cases if not args.models or case.model in args.models]
    print(
        f"One sequence of {TOKENS:,} tokens and {CROPS} crops a micro-step, bf16, recomputation:\n\n"
        "| strategy | model | ranks | micro-steps | all-gather | reduce-scatter | all-reduce | reduce | broadcast "
        "| all-to-all | of objects |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for case in cases:
        found = counted(replace(case, layers=args.layers))
        assert found["repeats"], f"{case}: the third step differs from the second"
        print(row(case, found), flush=True)


if __name__ == "__main__":
    main()
