"""Counts the bytes that answering sends between two hosts, of which each layout must send some:

    python tools/bench/bench_answer_network.py [--width 512] [--layers 4] [--write]

Each host is a network namespace of this machine, the ranks are started in them by torchrun, and the kernel counts what
a network card sends, headers and all. Needs root and iproute2. --write replaces the table in docs/evidence/bytes.md.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from molmo_ds.engine import launch
from molmo_ds.engine.strategy import parse
from molmo_ds.infer.answers import answer
from molmo_ds.infer.options import Options
from molmo_ds.infer.question import Question
from molmo_ds.infer.replica import Replica
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing import synthetic
from molmo_ds.testing.lab import Lab, missing
from molmo_ds.testing.tables import ROOT, cpu, write
from molmo_ds.testing.text_sample import text_sample
from molmo_ds.weights.slices import Cut

PROMPTS, LENGTH, NEW = 16, 160, 8
NEVER = 10**6  # no word: answers have the length that is asked of them
NUMBERS = 4  # bytes of a float32
PORT = 29400


@dataclass(frozen=True)
class Layout:
    """One replica on two hosts."""

    shares: int  # tensor-parallel ranks
    stages: int

    @property
    def ranks(self) -> int:
        """Of each host."""
        return self.shares * self.stages // 2


LAYOUTS = {
    "2 shares": Layout(2, 1),
    "2 stages": Layout(1, 2),
    "2 shares x 2 stages": Layout(2, 2),
}


@dataclass(frozen=True)
class Size:
    """Of a decoder."""

    width: int
    layers: int

    def network(self) -> Molmo:
        """A decoder of Qwen2's kind below a tower that sees nothing here."""
        text = replace(
            synthetic.MODEL.text,
            hidden_size=self.width,
            intermediate_size=2 * self.width,
            num_hidden_layers=self.layers,
            max_position_embeddings=512,
        )
        model = Molmo(replace(synthetic.MODEL, text=text))
        model.reset_parameters(0)
        return model.eval()


@dataclass(frozen=True)
class Seen:
    """What a host sent while its layers computed some tokens."""

    tokens: int
    sent: int  # bytes


def theory(layout: Layout, size: Size, tokens: int) -> int:
    """Bytes of hidden states that both hosts together must send.

    Shares of different hosts all-reduce twice a layer, for which each of two sends all once; the last layer's MLP has
    only the last token of a prompt. Stages send what leaves the last layer of the first one, each share its columns,
    once.
    """
    hidden = size.width * NUMBERS * tokens
    if layout.stages > 1:
        return hidden
    passed_by = size.width * NUMBERS * PROMPTS * (LENGTH - 1)
    return 2 * (2 * size.layers * hidden - passed_by)


def questions() -> list[Question]:
    """Prompts of words alone."""
    source = torch.Generator().manual_seed(0)
    prompts = torch.randint(6, 90, (PROMPTS, LENGTH), generator=source)
    options = Options(max_new_tokens=NEW)
    return [
        Question(name=str(i), prompt=text_sample(prompt), options=options)
        for i, prompt in enumerate(prompts)
    ]


def card() -> int:
    """Bytes that this namespace's network card has sent."""
    words = ["ip", "-s", "-j", "link", "show", "eth0"]
    shown = subprocess.run(words, capture_output=True, check=True).stdout
    return int(json.loads(shown)[0]["stats64"]["tx"]["bytes"])


def measure(layout: Layout, size: Size, out: Path) -> None:
    """On a rank: answer two questions to begin with, then count; the first one of a host writes what it saw."""
    torch.set_num_threads(1)
    ours = {"engine": "inference", "stages": layout.stages, "slots": PROMPTS, "slot_tokens": 256}
    values = {
        "tensor_parallel": {"autotp_size": layout.shares},
        "molmo_ds": {**ours, "prefill_tokens": 640},
    }
    world = launch.start(timeout_seconds=300)
    model = size.network()
    whole = model.state_dict()

    def fill(cuts: dict[str, Cut]) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, whole[name][cut]) for name, cut in cuts.items())

    replica = Replica.over_ranks(model.config, parse("mine.json", values), world, fill, NEVER)
    list(answer(replica, questions()[:2]))
    world.barrier()
    tokens_before = replica.prefilled + replica.row_steps
    bytes_before = card()
    world.barrier()
    list(answer(replica, questions()))
    world.barrier()
    bytes_sent = card() - bytes_before
    world.barrier()
    seen = Seen(replica.prefilled + replica.row_steps - tokens_before, bytes_sent)
    if world.local_rank == 0:
        out.write_text(json.dumps(vars(seen)))


def run(lab: Lab, name: str, size: Size, folder: Path) -> list[Seen]:
    """What each host saw."""
    environment = lab.environment() | {"GLOO_SOCKET_IFNAME": "eth0", "PYTHONPATH": str(ROOT)}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    torchrun = f"-m torch.distributed.run --nnodes 2 --nproc-per-node {LAYOUTS[name].ranks}"
    torchrun += f" --master-addr {lab.address('host1')} --master-port {PORT}"
    files = [folder / f"{number}.json" for number in range(2)]
    started = []
    for number, file in enumerate(files):
        words = [sys.executable, *torchrun.split(), "--node-rank", str(number), __file__]
        words += ["--width", str(size.width), "--layers", str(size.layers)]
        words += ["--layout", name, "--out", str(file)]
        command = lab.words(f"host{number + 1}", words)
        started.append(subprocess.Popen(command, env=environment, cwd=ROOT))
    codes = [process.wait(900) for process in started]
    if any(codes):
        raise RuntimeError(f"{name}: the ranks ended with {codes}")
    return [Seen(**json.loads(file.read_text())) for file in files]


def row(name: str, size: Size, seen: list[Seen]) -> str:
    """A line of the table."""
    first, second = seen
    assert first.tokens == second.tokens
    must = theory(LAYOUTS[name], size, first.tokens)
    sent = first.sent + second.sent
    cells = [name, LAYOUTS[name].ranks, f"{first.tokens:,}", f"{first.sent:,}", f"{second.sent:,}"]
    return f"| {' | '.join(map(str, cells))} | {must:,} | {sent / must:.4f} |"


def table(lab: Lab, size: Size, folder: Path) -> list[str]:
    """Every layout."""
    return [
        f"{PROMPTS} prompts of {LENGTH} tokens, {NEW} new ones, width {size.width}, {size.layers} layers,"
        f" float32, gloo, {cpu()}, {datetime.date.today()}:",
        "",
        "| layout | ranks a host | tokens | bytes of host 1 | of host 2 | must be sent | sent / must |",
        "|---|---|---|---|---|---|---|",
        *(row(name, size, run(lab, name, size, folder)) for name in LAYOUTS),
    ]


def main() -> None:
    """Run all layouts and print a table; with --layout, be a rank."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--write", action="store_true", help="into docs/evidence/bytes.md")
    parser.add_argument("--layout", choices=LAYOUTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = Size(given.width, given.layers)
    if given.layout:
        measure(LAYOUTS[given.layout], size, given.out)
        return
    if why := missing():
        raise ValueError(f"There can be no laboratory here: {why}.")
    command = " ".join(["python", "tools/bench/bench_answer_network.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder) / "lab", 2) as lab:
        first, *rest = table(lab, size, Path(folder))
    lines = [f"`{command}`, {first}", *rest]
    print("\n".join(lines))
    if given.write:
        write("bytes of answering", lines)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"bench_answer_network: {error}")
