"""The first hour on a machine with GPUs: every check by value, within a stated time, into one markdown page.

    python tools/bench/first_hour.py --out gpu.md              one hour
    python tools/bench/first_hour.py --out gpu.md --minutes 10
    python tools/bench/first_hour.py --out gpu.md --twin       tried whole, tiny, on the twin of a GPU
    python tools/bench/first_hour.py --out gpu.md --resume     what an earlier call with this page did not pass

It stops at nothing: what fails, or has no time left, is a row that says so. The page, which is meant for docs/evidence,
is written after each check. Logs, traces and the runs are kept next to it, in OUT.files/.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from molmo_ds.engine.launching.ports import free_port
from molmo_ds.files import local
from molmo_ds.testing import run_files

ROOT = Path(__file__).resolve().parents[2]
TOGETHER = (
    "zero3",
    "zero1",
    "zero2",
    "zero3_sp",
    "zero3_tp",
    "zero3_hpz",
    "pipe_zero1",
    "pipe_dualpipev",
)
PATIENCE = 10  # with the twin, which shares a CPU with others
SILENCE = 30  # timeout_seconds of runs that lose a rank
BUCKETS = {
    "auto": {},
    "5e7": {"prefetch": 5e7, "reduce": 5e7},
    "2e8": {"prefetch": 2e8, "reduce": 2e8},
}
DEVICES = """
import torch
for i in range(torch.cuda.device_count()):
    p = torch.cuda.get_device_properties(i)
    print(p.name, f"{p.total_memory / 2**30:.0f} GiB", f"sm_{p.major}{p.minor}")
assert torch.cuda.is_available(), "no GPU"
"""


@dataclass(frozen=True)
class Result:
    """What became of a check."""

    state: str  # passed, failed, out of time
    figure: str  # what it showed, in a line
    table: str = ""  # a markdown table of its own


@dataclass(frozen=True)
class Check:
    """One check: a name, a command, and the seconds it may take."""

    name: str
    command: list[str]
    seconds: float
    ranks: int = 1  # processes under torchrun
    out: Path | None = None  # of a run, whose log.jsonl holds the figures
    table: Path | None = None  # a file with a table that the command writes
    lose: int | None = None  # the signal that one rank gets after its first step


class Hour:
    """Runs checks until the time is over, and keeps the page."""

    def __init__(self, out: Path, seconds: float, twin: bool) -> None:
        self.out = out
        self.folder = out.with_name(f"{out.name}.files")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.end = time.monotonic() + seconds
        self.python = [sys.executable, *(["-m", "molmo_ds.testing.twin"] if twin else [])]
        self.twin = twin
        self.results: dict[str, Result] = {}

    @property
    def file(self) -> Path:
        """Where the results are kept for a later call."""
        return self.folder / "results.json"

    def resume(self) -> None:
        """Take over what passed in an earlier call."""
        if self.file.exists():
            kept = json.loads(self.file.read_text())
            passed = {name: row for name, row in kept.items() if row["state"] == "passed"}
            self.results = {name: Result(**row) for name, row in passed.items()}

    def words(self, check: Check) -> list[str]:
        """The command, under torchrun where there are several ranks."""
        if check.ranks == 1:
            return [*self.python, *check.command]
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            f"--nproc-per-node={check.ranks}",
        ]
        launcher += [f"--master-port={free_port()}"]
        twin = ["-m", "molmo_ds.testing.twin"] if self.twin else []
        return [*launcher, *twin, *check.command]

    def run(self, check: Check) -> None:
        """Run a check and write the page."""
        patience = PATIENCE if self.twin else 1
        left = min(patience * check.seconds, self.end - time.monotonic())
        if left < 5:
            self.results[check.name] = Result("out of time", "not begun")
        else:
            self.results[check.name] = self.watched(check, left)
        self.file.write_text(json.dumps({k: vars(v) for k, v in self.results.items()}, indent=1))
        self.out.write_text(self.page())

    def watched(self, check: Check, seconds: float) -> Result:
        """Run the command in a process group of its own, which ends with it."""
        log = self.folder / f"{check.name.replace(' ', '-').replace('/', '-')}.log"
        began = time.monotonic()
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TORCH_FR_BUFFER_SIZE": "2000",
        }
        with open(log, "w") as said:
            process = subprocess.Popen(
                self.words(check),
                cwd=ROOT,
                stdout=said,
                stderr=said,
                env=environment,
                start_new_session=True,
            )
            try:
                lost_at = lose_a_rank(check, process, began + seconds) if check.lose else None
                code = process.wait(max(began + seconds - time.monotonic(), 1))
            except subprocess.TimeoutExpired:
                code = None
            finally:
                ended = time.monotonic()
                end_group(process)
        if check.lose:
            return told_of_loss(lost_at, ended, code, log)
        if code is None:
            return Result("out of time", f"after {seconds:.0f} s; {last_line(log)}")
        figure = figures(check.out) if check.out else last_line(log)
        table = check.table.read_text() if check.table and check.table.exists() else ""
        state = "passed" if code == 0 else "failed"
        return Result(state, f"{figure} ({ended - began:.0f} s)", table)

    def page(self) -> str:
        """The markdown of what is known so far."""
        driver = output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
        device = (
            output([*self.python, "-c", DEVICES])
            if not self.twin
            else "the twin of a GPU: no figure is a GPU's"
        )
        names = ("torch", "deepspeed", "accelerate", "triton", "molmo_ds")
        versions = ", ".join(f"{name} {version(name)}" for name in names)
        lines = [
            "# The first hour on GPUs",
            "",
            f"{device}; driver {driver}; {versions}; {datetime.date.today()}.",
            "",
        ]
        lines += ["| check | | figures |", "|---|---|---|"]
        lines += [
            f"| {name} | {r.state} | {r.figure.replace('|', '/')} |"
            for name, r in self.results.items()
        ]
        for name, result in self.results.items():
            if result.table:
                lines += ["", f"## {name}", "", result.table.strip()]
        return "\n".join(lines) + "\n"


def lose_a_rank(check: Check, process: subprocess.Popen, until: float) -> float | None:
    """Send the check's signal to the last rank when the run has made a step; the time, None if it made none."""
    log = check.out / "log.jsonl"
    while time.monotonic() < until and process.poll() is None:
        if log.exists() and log.stat().st_size:
            ranks = children(process.pid)
            if ranks:
                os.kill(ranks[-1], check.lose)
                return time.monotonic()
        time.sleep(0.2)
    return None


def told_of_loss(lost_at: float | None, ended: float, code: int | None, log: Path) -> Result:
    """Whether the other ranks ended soon after one was lost."""
    if lost_at is None:
        return Result("failed", f"no step was made; {last_line(log)}")
    if code is None:
        return Result("failed", "the other ranks went on waiting")
    took = ended - lost_at
    late = took > 3 * SILENCE
    return Result(
        "failed" if late or code == 0 else "passed", f"all ended {took:.1f} s later, code {code}"
    )


def children(pid: int) -> list[int]:
    """Processes that a launcher started, in order."""
    found = output(["ps", "-o", "pid=", "--ppid", str(pid)])
    return [int(word) for word in found.split() if word.isdigit()]


def end_group(process: subprocess.Popen) -> None:
    """End whatever a command left behind, stopped processes as well."""
    for number in (signal.SIGCONT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
    process.wait()


def figures(out: Path) -> str:
    """Loss, MFU, seconds and memory of a run's last line."""
    log = out / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    if not lines:
        return "no step was made"
    values = json.loads(lines[-1])
    shown = [
        f"step {values['step']}",
        f"loss {values['loss']:.4f}",
        f"{values['step_seconds'] * 1e3:.0f} ms a step",
    ]
    shown += [f"MFU {values['mfu']:.1%}"] if "mfu" in values else []
    shown += [f"{values['memory_bytes'] / 2**30:.1f} GiB", f"data {values['data_wait_share']:.0%}"]
    return ", ".join(shown)


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][-160:] if lines else "nothing was said"


def output(command: list[str]) -> str:
    """What a command prints; "unknown" where it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return "; ".join(done.stdout.split("\n")).strip("; ") or "unknown"


def bucket_files(folder: Path) -> dict[str, Path]:
    """ZeRO-3 with three sizes of buckets."""
    made = {}
    for name, sizes in BUCKETS.items():
        values = json.loads((ROOT / "ds_configs/zero3.json").read_text())
        block = values["zero_optimization"]
        if sizes:
            block["stage3_prefetch_bucket_size"] = sizes["prefetch"]
            block["reduce_bucket_size"] = sizes["reduce"]
        made[name] = folder / f"zero3-{name}.json"
        made[name].write_text(json.dumps(values))
    return made


def training(
    hour: Hour, name: str, ranks: int, strategy: str, *settings: str, **more: object
) -> Check:
    """A short run over made-up pictures."""
    out = hour.folder / name.replace(" ", "-")
    data = hour.folder / "data"
    base = (
        run_files.make(data)
        if not (data / "shards").exists()
        else json.loads((data / "words.json").read_text())
    )
    (data / "words.json").write_text(json.dumps(base))
    words = [
        "-m",
        "molmo_ds.train",
        *base,
        f"out={out}",
        "overwrite=true",
        "resume=false",
        f"strategy={strategy}",
    ]
    return Check(name, [*words, "save_interval=1000", *settings], 240, ranks, out, **more)


def checks(hour: Hour, gpus: int) -> list[Check]:
    """What is worth an hour, the most valuable first."""
    small = ["--small", "--steps", "1"] if hour.twin else []
    table = hour.folder
    out = [
        Check(
            "devices", ["-c", DEVICES] if not hour.twin else ["-m", "torch.utils.collect_env"], 120
        )
    ]
    out.append(training(hour, "one rank, ZeRO-3", 1, "ds_configs/zero3.json", "max_steps=4"))
    if not hour.twin:  # whose interpreter takes hours for shapes of this size
        tests = ["-m", "pytest", "--gpu", "-q", "tests/ops/test_gpu.py"]
        out.append(Check("kernels on a GPU", tests, 300))
    for name in ("64",) if hour.twin else ("2304", "16384"):
        page = table / f"steps-{name}.md"
        words = ["tools/bench/bench_step.py", "--end-to-end", *small]
        words += ["--only", name, "--out", str(page)]
        out.append(Check(f"1.5B step, {name}", words, 600, table=page))
    for strategy in ("zero1", "zero3"):
        profiled = (
            [] if hour.twin else ["profile_steps=[3]"]
        )  # the twin's build has no profiler of CUDA
        path = f"ds_configs/{strategy}.json"
        out.append(training(hour, f"trace of {strategy}", 1, path, "max_steps=4", *profiled))
    out.append(
        training(hour, "compiled", 1, "ds_configs/zero1.json", "max_steps=3", "compile=true")
    )
    if gpus > 1:
        quick = ("max_steps=3", "check_collectives=true", f"timeout_seconds={SILENCE}")
        out += [
            training(hour, f"2 ranks, {s}", 2, f"ds_configs/{s}.json", *quick) for s in TOGETHER
        ]
        long = ("max_steps=100000", f"timeout_seconds={SILENCE}")
        for word, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
            lost = training(
                hour, f"a rank is {word}", 2, "ds_configs/zero3.json", *long, lose=int(number)
            )
            out.append(lost)
    if gpus >= 8:
        for name, path in bucket_files(hour.folder).items():
            settings = ("global_batch=8", "max_steps=10")
            out.append(training(hour, f"8 ranks, buckets {name}", 8, str(path), *settings))
    ops = ["tools/bench/bench_ops.py", *small[:1], "--out", str(table / "ops.md")]
    out.append(Check("CUDA kernels built", ["-m", "molmo_ds.ops.cuda_library"], 300))
    out.append(Check("kernels against their floors", ops, 600, table=table / "ops.md"))
    return out


def main(arguments: list[str] | None = None) -> None:
    """Run every check for which there is time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=local, required=True, help="the page")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--twin", action="store_true", help="tiny, on the twin of a GPU")
    parser.add_argument("--resume", action="store_true", help="without the checks that passed")
    args = parser.parse_args(arguments)
    for ending in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C, so that no check is left behind
        signal.signal(ending, signal.default_int_handler)
    hour = Hour(args.out, 60 * args.minutes, args.twin)
    if args.resume:
        hour.resume()
    gpus = 2 if args.twin else len(output(["nvidia-smi", "-L"]).split("; "))
    every = checks(hour, gpus)
    for check in tqdm([c for c in every if c.name not in hour.results], desc="the first hour"):
        hour.run(check)
        result = hour.results[check.name]
        tqdm.write(f"{check.name}: {result.state}, {result.figure}")
    print(args.out)


if __name__ == "__main__":
    main()
