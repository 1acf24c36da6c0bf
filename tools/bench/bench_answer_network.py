"""Counts the bytes that answering sends over the network of a laboratory of two hosts, beside what must be sent:

    python tools/bench/bench_answer_network.py [--width 512] [--layers 4]

tp2: one decoder shared by two hosts, which all-reduces twice a layer. pp2: two stages, of which the first sends hidden
states and gets back a token and its log-probability. Each host is a network namespace of this machine, the ranks are
started in them by torchrun, and the kernel counts what a network card sends, headers and all. Needs root and iproute2.
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
from molmo_ds.testing.tables import ROOT, cpu
from molmo_ds.testing.text_sample import text_sample
from molmo_ds.weights.slices import Cut

LAYOUTS = {"tp2": (2, 1), "pp2": (1, 2)}  # tensor-parallel ranks, stages
PROMPTS, LENGTH, NEW = 16, 160, 8
NEVER = 10**6  # no word: answers have the length that is asked of them
NUMBERS = 4  # bytes of a float32


@dataclass(frozen=True)
class Seen:
    """What a host sent for some tokens."""

    tokens: int  # that its layers computed
    rows: int  # steps of a row that gave it a token
    sent: int  # bytes


def network(width: int, layers: int) -> Molmo:
    """A decoder of Qwen2's kind below a tower that sees nothing here."""
    text = replace(
        synthetic.MODEL.text,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        max_position_embeddings=512,
    )
    model = Molmo(replace(synthetic.MODEL, text=text))
    model.reset_parameters(0)
    return model.eval()


def sent() -> int:
    """Bytes that this namespace's card has sent."""
    shown = subprocess.run(
        ["ip", "-s", "-j", "link", "show", "eth0"], capture_output=True, check=True
    ).stdout
    return int(json.loads(shown)[0]["stats64"]["tx"]["bytes"])


def asked() -> list[Question]:
    """Prompts of words alone."""
    source = torch.Generator().manual_seed(0)
    prompts = torch.randint(6, 90, (PROMPTS, LENGTH), generator=source)
    options = Options(max_new_tokens=NEW)
    return [
        Question(name=str(i), prompt=text_sample(prompt), options=options)
        for i, prompt in enumerate(prompts)
    ]


def measure(layout: str, width: int, layers: int) -> Seen:
    """On a rank: answer once to begin with, then count."""
    torch.set_num_threads(1)
    tensor, stages = LAYOUTS[layout]
    ours = {"engine": "inference", "stages": stages, "slots": PROMPTS, "slot_tokens": 256}
    values = {
        "tensor_parallel": {"autotp_size": tensor},
        "molmo_ds": ours | {"prefill_tokens": 640},
    }
    world = launch.start(timeout_seconds=300)
    model = network(width, layers)
    whole = model.state_dict()

    def fill(cuts: dict[str, Cut]) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, whole[name][cut]) for name, cut in cuts.items())

    replica = Replica.over_ranks(model.config, parse("mine.json", values), world, fill, NEVER)
    list(answer(replica, asked()[:2]))
    world.barrier()
    before = replica.prefilled + replica.row_steps
    bytes_before = sent()
    found = list(answer(replica, asked()))
    bytes_sent = sent() - bytes_before
    world.barrier()
    rows = sum(len(one.token_ids) for one in found)
    return Seen(replica.prefilled + replica.row_steps - before, rows, bytes_sent)


def theory(layout: str, host: int, seen: Seen, width: int, layers: int) -> float:
    """Bytes that a host must send: what two ranks all-reduce, once, or what goes from stage to stage and back."""
    if layout == "tp2":
        heads = 3 * 4 * seen.rows  # the likeliest word of each rank's half: value, sum, index
        return 2.0 * layers * width * NUMBERS * seen.tokens + heads
    return float(width * NUMBERS * seen.tokens) if host == 0 else 8.0 * seen.rows


def run(lab: Lab, layout: str, width: int, layers: int, folder: Path) -> list[Seen]:
    """What each host sent, in their order."""
    environment = lab.environment() | {"GLOO_SOCKET_IFNAME": "eth0", "PYTHONPATH": str(ROOT)}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    started = []
    for host in range(2):
        words = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes",
            2,
            "--nproc-per-node",
            1,
        ]
        words += [
            "--node-rank",
            host,
            "--master-addr",
            lab.address("host1"),
            "--master-port",
            29400,
        ]
        words += [__file__, "--layout", layout, "--out", folder / f"{layout}-{host}.json"]
        words += ["--width", width, "--layers", layers]
        command = lab.words(f"host{host + 1}", list(map(str, words)))
        started.append(subprocess.Popen(command, env=environment, cwd=ROOT))
    codes = [process.wait(900) for process in started]
    if any(codes):
        raise RuntimeError(f"{layout}: the ranks ended with {codes}")
    files = [folder / f"{layout}-{host}.json" for host in range(2)]
    return [Seen(**json.loads(file.read_text())) for file in files]


def main() -> None:
    """Run both layouts and print a table; with --layout, be a rank."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--layout", choices=LAYOUTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.layout:
        found = measure(given.layout, given.width, given.layers)
        given.out.write_text(json.dumps(vars(found)))
        return
    if why := missing():
        raise ValueError(f"There can be no laboratory here: {why}.")
    print(
        f"{PROMPTS} prompts of {LENGTH} tokens, {NEW} new ones, width {given.width}, {given.layers} layers,"
        f" float32, gloo, {cpu()}, {datetime.date.today()}\n\n"
        "| layout | host | tokens | bytes sent | must be sent | ratio |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder) / "lab", 2) as lab:
        for layout in LAYOUTS:
            for host, seen in enumerate(run(lab, layout, given.width, given.layers, Path(folder))):
                must = theory(layout, host, seen, given.width, given.layers)
                print(
                    f"| {layout} | {host + 1} | {seen.tokens:,} | {seen.sent:,} | {must:,.0f} |"
                    f" {seen.sent / must:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
