"""What start, save, resume and a step should cost at a thousand ranks, term by term: python tools/bench/scale_paper.py

Nothing is measured here. --write puts the tables into docs/evidence/scale-on-paper.md.
"""

import argparse
from dataclasses import dataclass

import torch

from molmo_ds import presets
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing.tables import write

Term = tuple[str, str, float, str]  # what, formula, value, unit


@dataclass(frozen=True)
class Cluster:
    """What is given; `bus`, `flops`, `share` and `latency` are what an H100 usually has."""

    ranks: int = 1024
    ranks_of_host: int = 8
    storage: float = 8e9  # bytes a second and host
    network: float = 45e9  # bytes a second and GPU, between hosts
    bus: float = 25e9  # bytes a second and GPU, to pinned memory of the host
    flops: float = 989e12  # of a GPU in bf16
    share: float = 0.4  # of them that products of matrices reach
    latency: float = 5e-6  # seconds of a message between two GPUs
    link: float = (
        64e9  # bytes a second and GPU, of the PCIe link that the bus and the network may share
    )
    issue: float = 14e-6  # seconds of the host to find a tensor of a piece

    @property
    def hosts(self) -> int:
        """Machines."""
        return self.ranks // self.ranks_of_host


@dataclass(frozen=True)
class Work:
    """What is trained, by ZeRO-3, with recomputation of all layers."""

    parameters: int
    gathers: int  # collectives of the weights in a micro-step, forth and back
    scatters: int  # of the gradients
    pieces: int  # tensors of the network, of each of which a rank has a piece
    tokens: int = 4 * 4096  # of a rank and micro-step
    tars: int = 100_000
    active: int = 0  # parameters that a token meets, where experts are not all of them

    @property
    def state(self) -> float:
        """Bytes of a checkpoint: weights and two moments in fp32."""
        return 12.0 * self.parameters


def start(work: Work, cluster: Cluster) -> list[Term]:
    """From weights in fp32, each byte read once over all ranks."""
    weights = 4.0 * work.parameters
    tars = work.tars / cluster.ranks
    index = 150.0 * work.tars
    return [
        ("weights", "4 P / (H s)", weights / (cluster.hosts * cluster.storage), "s"),
        ("index of the data", "150 t k / s", index * cluster.ranks_of_host / cluster.storage, "s"),
        ("tars asked by a rank", "t / N", tars, "requests"),
        ("the same, 16 at once, 50 ms each", "t / N / 16 * 0.05", tars / 16 * 0.05, "s"),
    ]


def save(work: Work, cluster: Cluster) -> list[Term]:
    """All ranks write their own part; the copy is made while the next step's passes compute."""
    part = work.state / cluster.ranks
    terms = {what: value for what, _, value, unit in step_terms(work, cluster) if unit == "s"}
    step = sum(terms.values())
    passes = step - terms["AdamW"]
    copy = part / cluster.bus
    issued = 3 * work.pieces * cluster.issue
    left = max(0.0, copy - passes)
    shared = part / cluster.link
    return [
        ("copy to pinned memory, C", "12 P / N / b", copy, "s"),
        (
            "the same as a share of a step: the stall, if the step waited",
            "",
            100 * copy / step,
            "%",
        ),
        ("passes of the next step meanwhile, F", "step without AdamW", passes, "s"),
        ("tensors found by the host, I", "3 q i", issued, "s"),
        ("the stall", "I + max(0, C - F)", issued + left, "s"),
        ("the stall as a share of a step", "", 100 * (issued + left) / step, "%"),
        (
            "the same where the network shares the link",
            "+ 12 P / N / p",
            100 * (issued + left + shared) / step,
            "%",
        ),
        ("files written", "12 P / (H s)", work.state / (cluster.hosts * cluster.storage), "s"),
        ("memory of a host for the copy", "12 P / H", work.state / cluster.hosts / 2**30, "GiB"),
    ]


def resume(work: Work, cluster: Cluster) -> list[Term]:
    """On another number of ranks; reads 1.2 times the state at most."""
    whole = cluster.hosts * cluster.storage
    return [
        ("state read", "1.2 * 12 P / (H s)", 1.2 * work.state / whole, "s"),
        ("read by a rank", "1.2 * 12 P / N", 1.2 * work.state / cluster.ranks / 2**30, "GiB"),
    ]


def step_terms(work: Work, cluster: Cluster) -> list[Term]:
    """One micro-step and the update; nothing overlaps here, so that it is an upper bound."""
    around = (cluster.ranks - 1) / cluster.ranks
    compute = 8.0 * (work.active or work.parameters) * work.tokens / (cluster.flops * cluster.share)
    gathered = 2 * 4.0 * work.parameters * around
    reduced = 4.0 * work.parameters * around
    hops = (work.gathers + work.scatters) * (cluster.ranks - 1)
    adam = 7 * 4.0 * work.parameters / cluster.ranks
    return [
        ("products of matrices, recomputation too", "8 P T / (f u)", compute, "s"),
        ("weights gathered forth and back, fp32", "2 * 4 P / n", gathered / cluster.network, "s"),
        ("gradients scattered, fp32", "4 P / n", reduced / cluster.network, "s"),
        ("messages of rings", "(G + S) (N - 1) l", hops * cluster.latency, "s"),
        ("AdamW", "28 P / N / 3e12", adam / 3e12, "s"),
    ]


PARTS = {"start": start, "save": save, "resume": resume, "step": step_terms}


# preset, ranks, collectives of the weights and of the gradients as scale_collectives.py counted them
FIVE = (
    ("molmo_7b_d", 64, 69, 16),
    ("molmoe_1b", 256, 39, 18),
    ("molmo2_8b", 512, 85, 17),
    ("molmo_72b", 64, 330, 163),
    ("molmo_72b", 1024, 330, 163),
)


def sizes_of(preset: str) -> dict[str, int]:
    """Elements of each tensor of a preset's network."""
    with torch.device("meta"):
        return {n: p.numel() for n, p in Molmo(presets.get(preset)).named_parameters()}


def stalls() -> list[str]:
    """A table of what a save costs in each of the runs that many-ranks.md counts."""
    out = [
        "| model | ranks | copy, C | passes, F | found by the host, I | stall of a step | with a shared link |",
        "|---|---|---|---|---|---|---|",
    ]
    for preset, ranks, gathers, scatters in FIVE:
        sizes, text = sizes_of(preset), presets.get(preset).text
        share = text.num_experts_per_tok / text.num_experts if text.num_experts else 1
        active = sum(int(n * share) if ".experts." in name else n for name, n in sizes.items())
        work = Work(sum(sizes.values()), gathers, scatters, len(sizes), active=active)
        terms = {
            what: f"{value:,.3g} {unit}" for what, _, value, unit in save(work, Cluster(ranks))
        }
        names = (
            "copy to pinned memory, C",
            "passes of the next step meanwhile, F",
            "tensors found by the host, I",
            "the stall as a share of a step",
            "the same where the network shares the link",
        )
        out.append(f"| {' | '.join([preset, f'{ranks:,}', *(terms[name] for name in names)])} |")
    return out


def lines(work: Work, clusters: list[Cluster]) -> list[str]:
    """The table: a column of figures for each number of ranks."""
    given = clusters[0]
    head = " | ".join(f"{cluster.ranks:,} ranks" for cluster in clusters)
    out = [
        "`python tools/bench/scale_paper.py --write`: "
        f"P = {work.parameters:,} parameters, k = {given.ranks_of_host} ranks a host, "
        f"s = {given.storage / 1e9:g} GB/s a host from storage, n = {given.network / 1e9:g} GB/s a GPU between hosts, "
        f"b = {given.bus / 1e9:g} GB/s to the host, f = {given.flops / 1e12:g} TF/s, u = {given.share:g}, "
        f"l = {1e6 * given.latency:g} us, p = {given.link / 1e9:g} GB/s of a GPU's link, q = {work.pieces:,} tensors, "
        f"i = {1e6 * given.issue:g} us, T = {work.tokens:,} tokens a rank, t = {work.tars:,} tars, "
        f"G = {work.gathers:,} and S = {work.scatters:,} collectives; N ranks on H = N / k hosts.",
        "",
        f"| part | term | formula | {head} |",
        f"|---|---|---|{'---|' * len(clusters)}",
    ]
    for part, terms in PARTS.items():
        columns = [terms(work, cluster) for cluster in clusters]
        for same in zip(*columns):
            what, formula, _, unit = same[0]
            figures = " | ".join(f"{value:,.3g} {unit}" for _, _, value, _ in same)
            out.append(f"| {part} | {what} | {formula} | {figures} |")
    return out


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="molmo_72b")
    # those of molmo_72b, counted by scale_collectives.py
    parser.add_argument(
        "--gathers", type=int, default=330, help="collectives of the weights in a micro-step"
    )
    parser.add_argument("--scatters", type=int, default=163, help="those of the gradients")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    sizes = sizes_of(args.preset).values()
    work = Work(sum(sizes), args.gathers, args.scatters, len(sizes))
    made = lines(work, [Cluster(ranks) for ranks in (64, 1024, 10_240)])
    saves = stalls()
    print("\n".join([*made, "", *saves]))
    if args.write:
        write("scale on paper", made)
        write("saves on paper", saves)


if __name__ == "__main__":
    main()
