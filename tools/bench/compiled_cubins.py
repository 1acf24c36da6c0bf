"""Compiles whole layers, as `compile=true` does, for GPUs that are not there, and says what a batch recompiles.

    TRITON_INTERPRET=0 python -m molmo_ds.testing.twin tools/bench/compiled_cubins.py 90 [--small] [--brief] [--write]

ViT blocks and a decoder layer at the widths of Molmo-7B-D (--small: narrow ones) train, are evaluated and answer on
the twin, through torch.compile to cubins by the ptxas that Triton brings; nothing is launched, so what comes out is
not looked at. One architecture a call: torch keeps what it knows of a device. --write puts the table into
docs/evidence/gpu.md.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import triton
from step_batches import reference_batches, tree_batches
from torch._dynamo.utils import counters
from triton.runtime import driver

from molmo_ds import presets
from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Batch
from molmo_ds.engine.compiled import compile_layers
from molmo_ds.engine.strategy import Execution, Limits
from molmo_ds.infer.options import Options
from molmo_ds.infer.question import Question
from molmo_ds.infer.replica import Replica
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing import tables
from molmo_ds.testing.text_sample import text_sample
from molmo_ds.testing.twin.offline import Kernel, Offline, prepare_inductor

TOKENS = 1024
WORDS = 4096  # a row of the embedding costs memory and no kernel
LENGTHS = (640, 896, 512, 1280, 768, 1152)  # as `packing: to_128` makes them
ROWS = (1, 2, 3, 4, 4, 2, 3, 1)  # that answer at once


@dataclass(frozen=True)
class Counted:
    """What one phase made."""

    phase: str
    first: int  # graphs of its first batch
    later: int  # of the others
    batches: int
    breaks: int
    kernels: int
    spilled: list[str]  # kernels, with their bytes outside registers


def architecture(small: bool) -> MolmoConfig:
    """7B-D with two ViT blocks, one decoder layer and few words."""
    whole = presets.get("molmo_7b_d")
    text = replace(
        whole.text, num_hidden_layers=1, vocab_size=WORDS, embedding_size=WORDS,
        max_position_embeddings=2 * TOKENS,
    )  # fmt: skip
    vision = replace(whole.vision, num_hidden_layers=2, feature_layers=(-1, -2))
    if small:
        text = replace(
            text, hidden_size=256, intermediate_size=512, num_attention_heads=4,
            num_key_value_heads=2,
        )  # fmt: skip
        vision = replace(vision, hidden_size=128, intermediate_size=256, num_attention_heads=2)
    return replace(whole, text=text, vision=vision)


def batches(config: MolmoConfig) -> Iterator[Batch]:
    """Ten of one length, as packing makes them: one to four crops, plain rows and trees."""
    for crops in (2, 3, 1, 4, 2):
        yield reference_batches(config, 1, TOKENS, crops)[0]
        trees, _, _ = tree_batches(config, min(crops, 3), 4, 4, 1, TOKENS)
        yield trees[0]


class Counter:
    """Graphs, breaks and kernels since it was asked last."""

    def __init__(self, offline: Offline) -> None:
        self.offline = offline
        self.graphs = 0

    def new_graphs(self) -> int:
        """Graphs since the last call."""
        made = counters["stats"]["unique_graphs"]
        new = made - self.graphs
        self.graphs = made
        return new

    def count(self, phase: str, works: list[Callable[[], None]]) -> Counted:
        """Do one after the other."""
        before = set(self.offline.kernels)
        counters["graph_break"].clear()
        made = []
        for work in works:
            work()
            made.append(self.new_graphs())
        kernels = [kernel for cubin, kernel in self.offline.kernels.items() if cubin not in before]
        assert {kernel.arch for kernel in kernels} <= {self.offline.arch}, "another GPU's kernels"
        sizes = [(kernel.name, spill(kernel)) for kernel in kernels]
        return Counted(
            phase=phase,
            first=made[0],
            later=sum(made[1:]),
            batches=len(made),
            breaks=sum(counters["graph_break"].values()),
            kernels=len(kernels),
            spilled=[f"{name} {size} bytes" for name, size in sizes if size],
        )


def spill(kernel: Kernel) -> int:
    """Bytes that a thread keeps outside its registers."""
    used = kernel.usage()
    return used["STACK"] + used["LOCAL"]


def trained(model: Molmo, batch: Batch) -> None:
    """Forward and backward under autocast."""
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        ce_sum, z_sum, _ = model(batch.to("cuda"))
    (ce_sum + z_sum).backward()


@torch.no_grad()
def evaluated(model: Molmo, batch: Batch) -> None:
    """The loss of held-out samples."""
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        model(batch.to("cuda"))


def answered(replica: Replica, rows: int) -> None:
    """Prompts of several lengths, three tokens each."""
    for row in range(rows):
        prompt = text_sample(torch.arange(20 + 7 * row) % WORDS)
        options = Options(max_new_tokens=3)
        replica.admit([Question(name=str(row), prompt=prompt, options=options)])
    while replica.busy:
        replica.step()


def counted(arch: int, small: bool, brief: bool = False) -> list[Counted]:
    """Training, evaluation and answers of a compiled network; of `brief` four training batches alone."""
    offline = Offline(arch, device=0)
    driver.set_active(offline)
    prepare_inductor(arch)
    config = architecture(small)
    with torch.device("cuda"):
        model = Molmo(config)
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    compile_layers(model)
    counter = Counter(offline)
    given = list(batches(config))[: 4 if brief else None]
    training = [lambda b=batch: trained(model, b) for batch in given]
    found = [counter.count(f"training, {TOKENS:,} tokens", training)]
    if brief:
        return found
    others = [reference_batches(config, 1, length, 2)[0] for length in LENGTHS]
    training = [lambda b=batch: trained(model, b) for batch in others]
    found.append(counter.count("training, other lengths", training))
    model.eval()
    held_out = [lambda b=batch: evaluated(model, b) for batch in given]
    found.append(counter.count("evaluation", held_out))
    with torch.device("cuda"):
        answers = Molmo(config).eval().to(torch.bfloat16)
    limits = Limits(slots=4, slot_tokens=2 * TOKENS)
    replica = Replica.of(answers, WORDS, limits, Execution(compile=True, graphs=False))
    asked = [lambda n=rows: answered(replica, n) for rows in ROWS]
    found.append(counter.count("answers, a decode step for each bucket", asked))
    return found


def main() -> None:
    """Compile and print, or write, the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arch", type=int, choices=[80, 90])
    parser.add_argument("--small", action="store_true", help="narrow layers")
    parser.add_argument("--brief", action="store_true", help="four training batches alone")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    words = ["tools/bench/compiled_cubins.py", str(args.arch), *(["--small"] if args.small else [])]
    command = f"TRITON_INTERPRET=0 python -m molmo_ds.testing.twin {' '.join(words)}"
    lines = [
        f"`{command}`, torch {torch.__version__}, triton {triton.__version__}, {time.strftime('%Y-%m-%d')},"
        f" {tables.cpu()}:",
        "",
        "| phase | batches | graphs of the first | of the others | breaks | kernels | outside registers |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in counted(args.arch, args.small, args.brief):
        spilled = ", ".join(row.spilled)
        cells = [row.phase, row.batches, row.first, row.later, row.breaks, row.kernels]
        lines.append(f"| {' | '.join(map(str, cells))} | {spilled or 'none'} |")
    print("\n".join(lines))
    if args.write:
        tables.write(f"compiled cubins {args.arch}", lines)


if __name__ == "__main__":
    main()
