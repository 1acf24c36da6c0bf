"""Times training steps on this machine: forward, backward, clipping per component and AdamW, in tokens per second.

    python tools/bench/bench_step.py --preset reference_cpu   with our ops and plain ones (bench_cpu.py: with others)
    python tools/bench/bench_step.py --tree                   message trees, packed, against trees one to a row and
                                                              padded single annotations
    python tools/bench/bench_step.py --end-to-end --out FILE  on a GPU: a 1.5B model at 4 x 2304 and as a 16k tree,
                                                              against plain PyTorch, eager and compiled, and padded
                                                              batches

On the CPU it counts CPU seconds (time.process_time), which other jobs on the machine hardly change; on a GPU wall
seconds. --end-to-end prints a markdown table; a step that does not fit into memory is tried again with its vision tower
and then all of it recomputed in the backward pass. "waits" are the places where one step waits for the GPU, also
told on stderr. Model FLOPs are counted as the training log does (monitor/metrics.py), without what is recomputed.
"""

import argparse
import contextlib
import datetime
import gc
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from step_batches import Work, even_work, reference_batches, tree_batches
from stepper import stepper
from tqdm import tqdm

from molmo_ds import presets
from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Batch
from molmo_ds.engine import loss_scale
from molmo_ds.files import local
from molmo_ds.model.flops import flops_of_step
from molmo_ds.model.molmo import Molmo
from molmo_ds.monitor.metrics import peak_flops
from molmo_ds.ops import dispatch

PLAIN = "plain PyTorch, eager"
SIDES = ("packed trees", "trees one to a row", "padded single annotations")
VERSIONS = (  # name, kernels, layers compiled, message trees
    (PLAIN, "torch", False, True),
    ("plain PyTorch, compiled", "torch", True, True),
    ("padded single annotations, plain PyTorch, eager", "torch", False, False),
    ("padded single annotations, molmo_ds", None, False, False),
    ("molmo_ds", None, False, True),
    ("molmo_ds, compile=true", None, True, True),
)
COLUMNS = (
    "step", "version", "computed again", "ms a step", "tokens/s", "annotations/s", "times plain, eager", "TF", "MFU",
    "waits", "peak GiB",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What a step took."""

    seconds: float
    waits: int | None  # None on a CPU
    gigabytes: float  # 2^30 bytes at most
    checkpointing: str


def flops(config: MolmoConfig, batches: list[Batch]) -> float:
    """Operations of a step, of what the engine counts, as monitor/metrics.py does."""
    _, sums = loss_scale.scale(batches, 1, None, torch.device("cpu"), config)
    counts = dict(zip(loss_scale.COUNTS, sums.tolist(), strict=True))
    return flops_of_step(
        config,
        tokens=counts["tokens"],
        learnt=counts["learnt_tokens"],
        pairs=counts["visible_pairs"],
        crops=counts["crops"],
        windows=counts["windows"],
        pooled=counts["pooled_patches"],
    )


@contextlib.contextmanager
def waits_of(device: torch.device) -> Iterator[list[str]]:
    """A list that afterwards holds the places that waited for the GPU inside the block."""
    found: list[str] = []
    if device.type != "cuda":
        yield found
        return
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [f"{w.filename}:{w.lineno}" for w in seen if "synchronizing" in str(w.message)]


def measure(
    weights: Molmo,
    micro_batches: list[Batch],
    steps: int,
    device: torch.device,
    compiled: bool = False,
    checkpointing: str = "none",
) -> Measured:
    """CPU seconds (GPU: wall seconds) of a step from these first weights, after what warms up."""
    cuda = device.type == "cuda"
    clock: Callable[[], float] = time.perf_counter if cuda else time.process_time
    update = stepper(weights, micro_batches, device, compiled, checkpointing)
    warm = 2 if cuda else 1
    for step in tqdm(range(steps + warm), desc="steps", leave=False):
        if step == warm:
            start = clock()
        update(step)
        if cuda:
            torch.cuda.synchronize()
    seconds = (clock() - start) / steps
    if not cuda:
        return Measured(seconds, None, 0.0, checkpointing)
    torch.cuda.reset_peak_memory_stats()
    with waits_of(device) as waits:
        update(steps + warm)
    for place in dict.fromkeys(waits):
        tqdm.write(f"waits {waits.count(place)} times at {place}", sys.stderr)
    return Measured(seconds, len(waits), torch.cuda.max_memory_allocated() / 2**30, checkpointing)


def measure_what_fits(
    weights: Molmo, batches: list[Batch], steps: int, device: torch.device, compiled: bool
) -> Measured | None:
    """`measure` with as little recomputed as memory allows; None where nothing fits."""
    for checkpointing in ("none", "vision", "full"):
        torch._dynamo.reset()
        with contextlib.suppress(torch.OutOfMemoryError):
            return measure(weights, batches, steps, device, compiled, checkpointing)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return None


def row_of(
    weights: Molmo, work: Work, name: str, trees: bool, found: Measured | None, peak: float | None
) -> dict:
    """What the table says of a version; without `found` only what is counted."""
    batches = work.packed if trees else work.padded
    teraflops = flops(weights.config, batches) / 1e12
    row = {"step": work.name, "version": name, "TF": f"{teraflops:.1f}"}
    if found is None:
        return row
    tokens = sum(int((b.document_ids > 0).sum()) for b in batches)
    row |= {"computed again": found.checkpointing, "ms a step": f"{found.seconds * 1e3:.1f}"}
    row |= {
        "tokens/s": f"{tokens / found.seconds:.0f}",
        "annotations/s": f"{work.annotations / found.seconds:.2f}",
    }
    if found.waits is not None:
        row |= {"waits": str(found.waits), "peak GiB": f"{found.gigabytes:.1f}"}
    return row | ({"MFU": f"{teraflops * 1e12 / found.seconds / peak:.1%}"} if peak else {})


def end_to_end(
    weights: Molmo, works: list[Work], steps: int, device: torch.device | None, out: Path | None
) -> str:
    """The table of VERSIONS; `device` None: only what is counted. `out` is written row by row, should time run out."""
    parameters = sum(p.numel() for p in weights.parameters())
    peak = None if device is None else peak_flops(device)
    where = "No GPU here: nothing is measured, TF is counted" if device is None else str(device)
    if peak:
        import triton

        where = f"{torch.cuda.get_device_name()}, MFU of {peak / 1e12:.0f} TFLOP/s, triton {triton.__version__}"
    head = (
        f"{where}. torch {torch.__version__}, {parameters:,} parameters, {datetime.date.today()}."
    )
    lines = [head, "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for work in works:
        seconds: dict[str, float] = {}
        for name, ops, compiled, trees in tqdm(VERSIONS, desc=work.name):
            batches, found = work.packed if trees else work.padded, None
            if device is not None:
                with dispatch.use(ops):
                    found = measure_what_fits(weights, batches, steps, device, compiled)
            row = row_of(weights, work, name, trees, found, peak)
            if found:
                seconds[name] = found.seconds
                row["times plain, eager"] = (
                    f"{seconds[PLAIN] / found.seconds:.2f}" if PLAIN in seconds else "-"
                )
            elif device is not None:
                row["ms a step"] = "out of memory"
            lines.append("| " + " | ".join(row.get(c, "-") for c in COLUMNS) + " |")
            if out:
                out.write_text("\n".join(lines) + "\n")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, time, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset", help="of molmo_ds.presets: reference_cpu, or qwen2_1b5 with --end-to-end"
    )
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1024, help="per sequence")
    parser.add_argument("--crops", type=int, default=2, help="per picture")
    parser.add_argument("--steps", type=int, help="timed; 6, or 3 with --end-to-end")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument(
        "--tree", action="store_true", help="time message trees, packed, against others"
    )
    parser.add_argument("--annotations", type=int, default=4, help="per picture, with --tree")
    parser.add_argument(
        "--pool", type=int, default=48, help="pictures that sequences are packed from, with --tree"
    )
    parser.add_argument("--end-to-end", action="store_true", help="the table of a GPU")
    parser.add_argument(
        "--small",
        action="store_true",
        help="with it: tiny shapes and model, to try the tool itself",
    )
    parser.add_argument(
        "--only", default="", help="with it: the steps whose name holds this, such as 2304"
    )
    parser.add_argument("--out", type=local, help="with it: write the table here as well")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    gpu = torch.cuda.is_available()
    device = torch.device(args.device or ("cuda" if gpu else "cpu"))
    if args.end_to_end:
        config = presets.get(args.preset or ("tiny" if args.small else "qwen2_1b5"))
        # rows, tokens, pictures of a row, crops, annotations
        shapes = (
            [(2, 64, 1, 2, 4), (1, 160, 2, 2, 6)]
            if args.small
            else [(4, 2304, 1, 13, 4), (1, 16384, 4, 13, 20)]
        )
        works = [even_work(config, *shape) for shape in shapes]
        measured = gpu or args.device is not None
        with torch.device("cpu" if measured else "meta"):
            weights = Molmo(config)
        if measured:
            weights.reset_parameters(0)
        chosen = [work for work in works if args.only in work.name]
        print(end_to_end(weights, chosen, args.steps or 3, device if measured else None, args.out))
        return
    preset, steps = args.preset or "reference_cpu", args.steps or 6
    config = presets.get(preset)
    weights = Molmo(config)
    weights.reset_parameters(0)
    parameters = sum(p.numel() for p in weights.parameters())
    clock = "second" if device.type == "cuda" else "CPU-second"
    print(
        f"{preset}: {parameters:,} parameters, torch {torch.__version__}, {args.threads} thread(s), {device}"
    )
    for ops in (None, "torch"):
        name = f"ops {ops or 'default':7}"
        with dispatch.use(ops):
            if args.tree:
                sides = tree_batches(
                    config, args.crops, args.pool, args.annotations, args.sequences
                )
                pictures = sum(len(batch.input_ids) for batch in sides[1])
                rates = [pictures / measure(weights, side, steps, device).seconds for side in sides]
                for said, side, rate in zip(SIDES, sides, rates):
                    tokens = sum(batch.input_ids.numel() for batch in side)
                    filled = sum(int((batch.document_ids > 0).sum()) for batch in side)
                    print(
                        f"{name} {said:26} {rate:.2f} pictures per {clock}, {tokens} tokens a step, "
                        f"{filled / tokens:.1%} filled; packed trees take 1 / {rates[0] / rate:.2f} of its time"
                    )
                continue
            batches = reference_batches(config, args.sequences, args.tokens, args.crops)
            seconds = measure(weights, batches, steps, device).seconds
            rate = args.sequences * args.tokens / seconds
            print(f"{name} {seconds:.3f} {clock}s a step, {rate:.0f} tokens per {clock}")


if __name__ == "__main__":
    main()
