"""Counts the bytes that each strategy sends over the network per step, on a laboratory of two hosts (tests/multinode).

    python tools/bench/bench_network.py [--strategies zero1 zero3] [--rate 100mbit] [--write]

Each host is a network namespace of this machine; the kernel counts what its network card sends, headers and all. Needs
root and iproute2. --write replaces the table between the markers in docs/evidence/bytes.md.
"""

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from molmo_ds.config import RunConfig
from molmo_ds.engine import build_engine, launch, optim
from molmo_ds.engine.shares import tensor_shards
from molmo_ds.engine.strategy import accumulation, read_strategy
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing import ranks, synthetic
from molmo_ds.testing.lab import Lab, missing
from molmo_ds.testing.oracle import fresh_groups
from molmo_ds.testing.tables import ROOT, write

STRATEGIES = [
    "zero0",
    "zero1",
    "zero2",
    "zero3",
    "zero3, nothing kept",
    "zero3_hpz",
    "zero3_hpz, nothing kept",
    "zero3_offload",
    "zero3_sp",
    "zero3_tp",
    "zero2_ep",
    "zero3_ep",
    "zero3_ep_tp",
    "zero3_sp_ep",
    "pipe_zero1",
    "pipe_zero1_ep",
    "pipe_dualpipev",
]
KEEP_NOTHING = {
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
    "stage3_param_persistence_threshold": 0,
}
LANES, STEPS, WIDTH = 8, 2, 256
CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Cell:
    """A strategy on two hosts."""

    strategy: str
    slots: int
    accumulation: int

    def config(self, folder: Path) -> RunConfig:
        """The run; OLMoE's decoder for experts, Qwen2's else."""
        text = replace(
            synthetic.MODEL.text,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_key_value_heads=4,
            initializer_range=0.02,
        )
        if "_ep" in self.strategy:
            experts = {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": WIDTH}
            text = replace(text, model_type="olmoe", attention_bias=False, qk_norm=True, **experts)
        model = replace(synthetic.MODEL, text=text)
        path = ROOT / f"ds_configs/{self.strategy.partition(',')[0]}.json"
        if "," in self.strategy:
            values = json.loads(path.read_text())
            values["zero_optimization"] |= KEEP_NOTHING
            folder.mkdir(exist_ok=True)
            path = folder / "keeps_nothing.json"
            path.write_text(json.dumps(values))
        size = read_strategy(str(path)).data_parallel_size(2 * self.slots)
        micro_batch = LANES // size // self.accumulation
        return synthetic.adamw(
            model=model, strategy=str(path), global_batch=LANES, micro_batch=micro_batch
        )


@dataclass(frozen=True)
class Seen:
    """What a cell did per step."""

    sent: float  # bytes that a host sent, mean of both
    seconds: float  # of a step
    slow: float  # the same at the limited rate, 0 with several micro-steps


def sent() -> int:
    """Bytes that this namespace's card has sent."""
    shown = subprocess.run(
        ["ip", "-s", "-j", "link", "show", "eth0"], capture_output=True, check=True
    ).stdout
    return int(json.loads(shown)[0]["stats64"]["tx"]["bytes"])


def measure(world: launch.World, config: RunConfig, rate: str) -> Seen:
    """Some steps at full speed, which are counted, and then some at the limited rate."""
    engine = build_engine(config, world)

    def steps(first: int) -> float:
        world.barrier()
        began = time.perf_counter()
        for step in range(first, first + STEPS):
            engine.train_step(
                synthetic.micro_batches(config, step, engine.data_rank, engine.data_size)
            )
        world.barrier()
        return (time.perf_counter() - began) / STEPS

    steps(0)
    before = sent()
    fast = steps(STEPS)
    bytes_sent = (sent() - before) / STEPS
    if accumulation(config, engine.data_size) > 1:
        return Seen(sum(world.gather(bytes_sent)) / world.size, fast, 0.0)
    if world.local_rank == 0:
        shape = ["root", "tbf", "rate", rate, "burst", "64kb", "latency", "400ms"]
        subprocess.run(["tc", "qdisc", "replace", "dev", "eth0", *shape], check=True)
    slow = steps(2 * STEPS)
    if world.local_rank == 0:
        subprocess.run(["tc", "qdisc", "del", "dev", "eth0", "root"], check=True)
    return Seen(sum(world.gather(bytes_sent)) / world.size, fast, slow)


def run(lab: Lab, cells: list[Cell], rate: str, folder: Path) -> dict[Cell, Seen | str]:
    """Fork the ranks into the hosts' networks, once for cells of equal slots; what was seen, or why not."""
    slots = cells[0].slots
    count, port, children, result = (
        2 * slots,
        20000 + int(time.time()) % 10000,
        [],
        folder / f"seen-{slots}.jsonl",
    )
    for rank in range(count):
        host = f"host{1 + rank // slots}"
        child = os.fork()
        if not child:
            try:
                with open(f"/proc/{lab.inner[host]}/ns/net") as namespace:
                    if ctypes.CDLL(None).setns(namespace.fileno(), CLONE_NEWNET):
                        raise OSError("setns failed")
                os.environ |= ranks.rank_environment(rank, count, port) | {
                    "GLOO_SOCKET_IFNAME": "eth0"
                }
                os.environ |= {"MASTER_ADDR": lab.address("host1"), "LOCAL_RANK": str(rank % slots)}
                world = launch.start(timeout_seconds=300)
                for cell in tqdm(cells, desc=f"2 x {slots}", disable=rank > 0):
                    fresh_groups()
                    try:
                        seen = vars(measure(world, cell.config(folder / str(rank)), rate))
                    except ValueError as error:
                        seen = str(error)
                    if rank == 0:
                        with open(result, "a") as stream:
                            stream.write(
                                json.dumps([cell.strategy, cell.accumulation, seen]) + "\n"
                            )
                world.barrier()
                os._exit(0)
            except BaseException as error:
                print(f"rank {rank}: {type(error).__name__}: {error}", file=sys.stderr)
                os._exit(1)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    lines = map(json.loads, result.read_text().splitlines()) if result.exists() else ()
    return {
        Cell(name, slots, times): x if isinstance(x, str) else Seen(**x) for name, times, x in lines
    }


def sizes(config: RunConfig) -> dict[str, tuple[int, int]]:
    """(all parameters, those that learn) of the experts, of what tensor parallelism splits, and of the rest."""
    with torch.device("meta"):
        model = Molmo(config.model)
    frozen = optim.frozen_names(model, config.optim)
    out = dict.fromkeys(("experts", "split", "rest"), (0, 0))
    for name, p in model.named_parameters():
        kind = (
            "experts"
            if ".mlp.experts." in name
            else "split"
            if tensor_shards.splits(name, config.model.text)
            else "rest"
        )
        out[kind] = out[kind][0] + p.numel(), out[kind][1] + p.numel() * (name not in frozen)
    return out


def total(config: RunConfig) -> tuple[int, int]:
    """(all parameters, those that learn)."""
    every, learns = zip(*sizes(config).values())
    return sum(every), sum(learns)


def theory(cell: Cell, config: RunConfig) -> float:
    """Bytes that a host sends per step, where each of two hosts has half of the ranks.

    Gradients and weights: ranks that hold the same parameters form a ring in rank order, of which one link leaves each
    host; over it go (n - 1) / n of what n ranks gather and twice that of what they reduce (gloo reduce-scatters by
    all-reduce), so that R rings of n ranks with 1 / R of the parameters each send as much as one ring.
    ZeRO 1 and 2 gather what learns once per step, ZeRO 3 every weight in every micro-step, twice if it keeps none; only
    ZeRO 1 and 0 reduce once per step. hpZ gathers once per step what has changed, if its ranks share a host.
    Activations leave a host only where it has one rank of each group of two (2 x 1), but between stages always:
    - pipeline: hidden states forth and their gradients back; forth also 28 bytes per token (labels, positions, loss
      weights, documents, branches) and 1 KB per micro-batch that says their shapes; DualPipeV, whose first and last
      part are on the first host and the two others on the second, crosses twice and says the shapes once;
    - sequence: per layer, forth and back, half of q, k, v and the output of each rank's half of the tokens;
    - tensor: per layer two all-reduces forth and two back of all tokens, or one and one without the MLP;
    - experts: per layer all-to-alls to the experts and from them, forth and back, of each rank's half of the tokens,
      top_k times, of which half belongs to the other rank's experts if the router is fair;
    - experts and tensor: each rank sends half of the assignments to experts and gathers all outputs, whose gradients,
      and those of the router's choice and of the layer's input, are all-reduced, as is the gradient of every
      parameter that both ranks hold whole.
    """
    strategy, text = read_strategy(config.strategy), config.model.text
    tensors, experts = strategy.tensor, strategy.experts
    ranks, times, tokens, one = (
        2 * cell.slots,
        cell.accumulation,
        LANES * synthetic.LENGTH,
        cell.slots == 1,
    )
    if strategy.stages > 1:
        assert strategy.stages == 2, "a stage is a host"
        links = strategy.data_parallel_size(ranks)
        crossing = 4.0 * tokens * WIDTH + 28 * tokens / 2
        return 2 * crossing if strategy.folded else crossing + 1024 * times * links / 2
    stage = strategy.stage
    kept = strategy.zero.live_parameters > 0
    hpz = 1 < strategy.zero.hpz <= cell.slots
    elements = 0.0
    for kind, (every, learns) in sizes(config).items():
        rings = experts if kind == "experts" else tensors
        members, parts = ranks // rings, 1 if kind == "rest" else rings
        share = rings / parts * (members - 1) / members
        gathers = 0 if stage == 0 else 1 if stage < 3 or hpz else times * (1 if kept else 2)
        elements += share * gathers * (learns if stage < 3 or hpz else every)
        elements += share * 2 * learns * (times if stage > 1 else 1)
    if one:
        row, layers, top_k = tokens * WIDTH, text.num_hidden_layers, text.num_experts_per_tok
        if strategy.sequence > 1:
            heads = 2 * WIDTH + 2 * text.num_key_value_heads * WIDTH // text.num_attention_heads
            elements += layers * 2 * tokens / 2 * heads / 2
        if tensors > 1:
            elements += layers * row * (4 if experts == 1 else 2)
        if experts > 1:
            elements += layers * row * top_k
        if tensors > 1 and experts > 1:
            elements += layers * row * (1 + 3 * top_k / 2) + times * sizes(config)["rest"][1]
    return 4.0 * elements


def table(rows: dict[Cell, Seen | str], folder: Path, rate: str) -> list[str]:
    """Markdown, in units of 4 bytes per parameter."""
    lines = [
        f"| strategy | 2 x 1 | theory | 2 x 1, 4 micro-steps | theory | 2 x 2 | theory | step | step at {rate} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for strategy in STRATEGIES:
        if not any(cell.strategy == strategy for cell in rows):
            continue
        row = [strategy]
        for slots, micro_steps in ((1, 1), (1, 4), (2, 1)):
            cell = Cell(strategy, slots, micro_steps)
            seen = rows.get(cell)
            if not isinstance(seen, Seen):
                print(f"{strategy}, 2 x {slots}: {seen}", file=sys.stderr)
                row += ["-", "-"]
                continue
            config = cell.config(folder)
            unit = 4 * total(config)[0]
            row += [f"{seen.sent / unit:.4f}", f"{theory(cell, config) / unit:.4f}"]
        times = ["-", "-"]
        for slots, where in ((2, " on 2 x 2"), (1, "")):  # the last one counts
            seen = rows.get(Cell(strategy, slots, 1))
            if isinstance(seen, Seen):
                times = [f"{1e3 * seconds:.0f} ms{where}" for seconds in (seen.seconds, seen.slow)]
        row += times
        lines.append(f"| {' | '.join(row)} |")
    return lines


def main() -> None:
    """Run the cells, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, choices=STRATEGIES)
    parser.add_argument("--rate", default="100mbit")
    parser.add_argument("--write", action="store_true", help="into docs/evidence/bytes.md")
    arguments = parser.parse_args()
    if why := missing():
        raise ValueError(f"There can be no laboratory here: {why}.")
    cells = [
        Cell(name, *shape) for name in arguments.strategies for shape in ((1, 1), (1, 4), (2, 1))
    ]
    began = time.strftime("%Y-%m-%d")
    with tempfile.TemporaryDirectory() as temporary, Lab(Path(temporary) / "lab", 2) as lab:
        folder = Path(temporary)
        rows: dict[Cell, Seen | str] = {}
        for slots in (1, 2):
            rows |= run(
                lab, [cell for cell in cells if cell.slots == slots], arguments.rate, folder
            )
        every, learns = total(Cell("zero3", 1, 1).config(folder))
        experts = total(Cell("zero3_ep", 1, 1).config(folder))[0]
        command = " ".join(["python", "tools/bench/bench_network.py", *sys.argv[1:]])
        lines = [
            f"`{command}`, {began}, {platform.machine()} CPU, gloo, fp32, "
            f"{every:,} parameters ({experts:,} with experts), of which {learns / every:.0%} learn, {LANES} sequences "
            f"of {synthetic.LENGTH} tokens; in units of 4 bytes per parameter, per host and step:",
            "",
            *table(rows, folder, arguments.rate),
        ]
    print("\n".join(lines))
    if arguments.write:
        write("bytes on the wire", lines)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"bench_network: {error}")
