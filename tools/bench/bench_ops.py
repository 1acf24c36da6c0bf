"""Times every op against eager and compiled PyTorch on a GPU, and prints how far it is from the floor.

    python tools/bench/bench_ops.py                        all ops at shapes of Molmo-7B-D and at the 16k message tree
    python tools/bench/bench_ops.py splice --out table.md  some ops; the table into a file as well

A row: milliseconds of the plain ops eager and compiled, of a library (Liger, flash-attn or PyTorch), of ours; spread of
two timings; the bytes and flops that the op cannot avoid (counted from the shapes); the floor they
give at this GPU's own copy and matrix rates; peak memory of ours, arguments included; largest relative error of output
and gradients against float64 at small, odd shapes, in float32 / bfloat16, with a ! where it is above 1e-5 / above 1e-2
or 1.5 times the plain version's. Without a GPU only the counted columns are printed, with the floor at rates measured
on an H100 earlier.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from ops_cases import Case, cases
from torch import Tensor
from tqdm import tqdm

from molmo_ds.files import local
from molmo_ds.ops import dispatch

# bytes/s copied, bf16 flop/s of an 8192-cubed product; facts of an earlier machine
H100 = (3.0e12, 798e12)
COLUMNS = (
    "op", "shape", "pass", "eager", "compile", "library", "own", "by", "spread", "GB", "TF", "floor", "floor/own",
    "peak MiB", "rel error",
)  # fmt: skip
CACHE = 256 << 20  # bytes, more than any L2
MOST = 200  # runs of one timing
LIMITS = (1e-5, 1e-2)  # of the relative error in float32 and bfloat16


def leaves(args: list[Any]) -> list[Tensor]:
    """The arguments that want a gradient."""
    flat = [x for a in args for x in (a if isinstance(a, list) else [a])]
    return [x for x in flat if isinstance(x, Tensor) and x.requires_grad]


def step(run: Callable[..., Any], args: list[Any], backward: bool) -> list[Tensor]:
    """Outputs, and with `backward` the gradients of their sum of squares / 2."""
    with contextlib.nullcontext() if backward else torch.no_grad():
        out = run(*args)
    out = list(out) if isinstance(out, tuple) else [out]
    if not backward:
        return out
    return out + list(torch.autograd.grad(out, leaves(args), [x.detach() for x in out]))


def milliseconds(function: Callable[[], Any], device: str) -> tuple[float, float]:
    """Median of the better of two timings, and how much the other was worse; the L2 is overwritten between runs."""
    if device == "cuda":
        times = [_on_gpu(function) for _ in range(2)]
    else:
        times = []
        for _ in range(2):
            start = time.perf_counter()
            function()
            times.append((time.perf_counter() - start) * 1e3)
    return min(times), max(times) / min(times) - 1


def _on_gpu(function: Callable[[], Any]) -> float:
    """Median milliseconds of a fifth of a second of runs, one at least; torch alone, so that the twin runs it too."""
    flush = torch.empty(CACHE, dtype=torch.uint8, device="cuda")
    function()
    torch.cuda.synchronize()
    began = time.perf_counter()
    flush.zero_()
    function()
    torch.cuda.synchronize()
    runs = max(1, min(MOST, round(0.2 / (time.perf_counter() - began))))
    pairs = []
    for _ in range(runs):
        flush.zero_()
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def relative_error(case: Case, by: str, dtype: torch.dtype) -> float:
    """Largest over output and gradients, at the small shape in `dtype`, against float64 of the same arguments."""

    def wide(value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, list):
            return [wide(v, dtype) for v in value]
        if dataclasses.is_dataclass(value):  # the attention's plan
            return dataclasses.replace(value, mask=wide(value.mask, dtype))
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().to(dtype).requires_grad_(value.requires_grad)
        return value

    found = []
    for name, kind in ((by, dtype), ("torch", torch.float64)):
        torch.manual_seed(0)
        with dispatch.use(name):
            args = [wide(a, kind) for a in case.make(True)]
            found.append(step(case.run, args, bool(leaves(args))))
    return max(
        ((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in zip(*found)
    )


@functools.cache
def errors(case: Case, by: str, device: str) -> str:
    """The cell: float32 / bfloat16, with a mark where a limit is missed."""
    single = half = "-"
    if device == "cpu" or by != "cuda" or case.op != "tree_attention":  # flash attention
        found = relative_error(case, by, torch.float32)
        single = f"{found:.1e}" + "!" * (found > LIMITS[0])
    # the interpreter cuts numbers off where a GPU rounds them
    if by != "triton" or os.environ.get("TRITON_INTERPRET") != "1":
        found, plain = (relative_error(case, name, torch.bfloat16) for name in (by, "torch"))
        half = f"{found:.1e}" + "!" * (found > min(LIMITS[1], 1.5 * plain))
    return f"{single} / {half}"


def rates(device: str) -> tuple[float, float]:
    """Bytes/s of a copy of 8 GB and flop/s of an 8192-cubed bf16 product, on this GPU now."""
    source, target = torch.empty(2, 4 * 10**9, dtype=torch.uint8, device=device)
    copy = 8e9 / (milliseconds(lambda: target.copy_(source), device)[0] / 1e3)
    a, b = torch.randn(2, 8192, 8192, device=device).bfloat16()
    return copy, 2 * 8192**3 / (milliseconds(lambda: a @ b, device)[0] / 1e3)


def counted(case: Case, backward: bool, ceiling: tuple[float, float]) -> dict[str, str]:
    """The columns that need no GPU."""
    gigabytes = case.gigabytes[backward]
    teraflops = case.teraflops[backward]
    floor = max(gigabytes * 1e9 / ceiling[0], teraflops * 1e12 / ceiling[1]) * 1e3
    names = {"op": case.op, "shape": case.shape, "pass": "fwd+bwd" if backward else "fwd"}
    return names | {"GB": f"{gigabytes:.3f}", "TF": f"{teraflops:.2f}", "floor": f"{floor:.3f}"}


def measured(
    case: Case, backward: bool, ceiling: tuple[float, float], device: str, small: bool
) -> list[dict[str, str]]:
    """A row for each own version; ops without one have a row for the plain version. What fails is told."""

    def timed(by: str, run: Callable[..., Any]) -> tuple[float, float, float] | None:
        torch.manual_seed(0)
        try:
            with dispatch.use(by):
                args = case.make(small)
                times = milliseconds(lambda: step(run, args, backward), device)
                if device == "cpu":
                    return *times, 0.0
                torch.cuda.reset_peak_memory_stats()
                step(run, args, backward)
                return *times, torch.cuda.max_memory_allocated() / 2**20
        except Exception as error:  # one that runs out of memory must not end the others
            tqdm.write(
                f"{case.op}, {by} {getattr(run, '__name__', run)}: {type(error).__name__}: {error}",
                sys.stderr,
            )
            return None

    base = counted(case, backward, ceiling) | ({"shape": "small"} if small else {})
    plain = case.plain or case.run
    torch._dynamo.reset()
    others = {"eager": plain, "compile": torch.compile(plain)} | (
        {"library": case.library[1]} if case.library else {}
    )
    for column, function in others.items():
        found = timed("torch", function)
        base[column] = f"{found[0]:.3f}" if found else "failed"
    if case.library:
        base["library"] += f" ({case.library[0]})"
    rows = []
    for by in case.by or ("torch",):
        row = base | {"by": by, "own": "failed"}
        if found := timed(by, case.run):
            row |= {
                "own": f"{found[0]:.3f}",
                "spread": f"{found[1]:.0%}",
                "peak MiB": f"{found[2]:.0f}",
            }
            row |= {
                "floor/own": f"{float(base['floor']) / found[0]:.2f}",
                "rel error": errors(case, by, device),
            }
        rows.append(row)
    return rows


def fails(row: dict[str, str]) -> bool:
    """Whether a version of ours did not run, or is less exact than it may be."""
    return row.get("own") == "failed" or "!" in row.get("rel error", "")


def usable(case: Case, device: str) -> Case:
    """The case with the versions that run here: pool_patches in CUDA if it was built, FlexAttention on GPUs, Triton on
    GPUs or interpreted."""
    from molmo_ds.ops import cuda_library

    left_out = set()
    # where Triton is interpreted, as on the twin, there is no GPU that could launch what nvcc has built
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    launches = device == "cuda" and not interpreted
    if case.op == "pool_patches" and not (launches and cuda_library.load() is not None):
        left_out.add("cuda")
    if device == "cpu" and (case.op == "tree_attention" or not interpreted):
        left_out.add("triton")
    return dataclasses.replace(case, by=tuple(by for by in case.by if by not in left_out))


def main(arguments: list[str] | None = None) -> str:
    """Prints and returns the table; ends with code 1 where a version of ours failed or missed a limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ops", nargs="*", help="names of ops; none = all")
    parser.add_argument("--out", type=local, help="also write the table here")
    parser.add_argument(
        "--small",
        action="store_true",
        help="tiny shapes, to try the tool itself; times mean nothing",
    )
    options = parser.parse_intermixed_args(arguments)
    chosen = [case for case in cases() if not options.ops or case.op in options.ops]
    if not chosen:
        parser.error(
            f"there is no such op; there are {', '.join(dict.fromkeys(c.op for c in cases()))}"
        )
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    ceiling = rates(device) if gpu and not options.small else H100
    where = f"{ceiling[0] / 1e12:.2f} TB/s, {ceiling[1] / 1e12:.0f} TFLOP/s"
    if gpu:
        import triton

        head = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, {where}"
    else:
        head = f"No GPU here ({platform.machine()} CPU): nothing is measured. GB, TF and floor are counted from shapes, "  # noqa: E501
        head += f"the floor at {where} of an H100."
    tiny = "Tiny shapes: the times mean nothing. " if options.small else ""
    lines = [
        f"{head} {datetime.date.today()}. {tiny}Milliseconds.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
    ]
    lines.append("|" + "---|" * len(COLUMNS))
    wrong = []
    made = 0
    with torch.device(device):
        for case in tqdm(chosen, desc="ops"):
            for backward in (False, True) if case.gigabytes[1] else (False,):
                if gpu or options.small:
                    rows = measured(usable(case, device), backward, ceiling, device, options.small)
                else:
                    rows = [counted(case, backward, ceiling)]
                lines += [
                    "| " + " | ".join(row.get(c, "-") for c in COLUMNS) + " |" for row in rows
                ]
                made += len(rows)
                wrong += [f"{row['op']} {row['pass']} by {row['by']}" for row in rows if fails(row)]
            if options.out:  # as far as it came, should time run out
                options.out.write_text("\n".join(lines) + "\n")
    table = "\n".join(lines)
    print(table)
    if wrong:
        sys.exit(f"{len(wrong)} of {made} rows failed or missed a limit: {', '.join(wrong)}")
    if gpu or options.small:
        print(f"\n{made} rows, none failed and none missed a limit")
    return table


if __name__ == "__main__":
    main()
