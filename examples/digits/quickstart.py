"""The quickstart's job: compose pictures, train in two stages, kill and resume once, examine, report."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import compose
import report
from numpy.random import RandomState
from tqdm import tqdm

from molmo_ds import settings
from molmo_ds.config import home
from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.tokens import train_tokenizer
from molmo_ds.weights import checkpoint

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STRATEGY = ROOT / "ds_configs/zero0.json"
STEPS = 1000
FIRST_STAGE = 0.375  # share of the steps
PICTURES = {"captions": 10_000, "questions": 10_000, "examination": 300}
OVERLAP = 10  # steps that are lost by the kill and made again: their losses must be the same
PACKAGES = (
    "molmo_ds",
    "torch",
    "deepspeed",
    "accelerate",
    "transformers",
    "scikit-learn",
    "scikit-image",
)
# what one word of the tokenizer may span: a turn of phrase, a piece of a point's tag, a coordinate, a digit, a word
PIECES = (
    r" ?User:(?: vqa2:)?| Which digit is at| the (?:(?:top|bottom)(?: left| right)?|left|right|centre)| How many"
    r"|s are there\?| Point to the| shows a total of| shows a"
    r"|(?: Counting the)? ?<points? x1?=\"|\" [xy]\d*=\"|\" alt=\"|\">|</points?>"
    r"|\d+\.\d| ?\d| ?[A-Za-z_]+\d?:?|[^A-Za-z\d]"
)


@dataclasses.dataclass(frozen=True)
class Job:
    """What the command line asks for; a folder belongs to one job."""

    out: Path
    ranks: int
    steps: int
    hard: bool

    @property
    def setting(self) -> compose.Setting:
        """How hard the pictures are."""
        return compose.HARD if self.hard else compose.EASY

    def recipe(self, stage: str) -> list[str]:
        """The files of settings of a stage, the later over the earlier."""
        names = [stage, *(["hard"] if self.hard else [])]
        return [str(HERE / f"{name}.yaml") for name in names]

    @property
    def stages(self) -> dict[str, int]:
        """Steps of the two training stages."""
        first = max(1, round(self.steps * FIRST_STAGE))
        return {"captions": first, "questions": max(2, self.steps - first)}


def main(arguments: list[str] | None = None) -> None:
    """Do every part that is not done yet; a user's mistake is one sentence and exit code 1."""
    began = time.time()
    for ending in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C, so that no training is left behind
        signal.signal(ending, signal.default_int_handler)
    try:
        job = read_arguments(arguments)
        claim(job)
        make_pictures(job)
        make_tokenizer(job)
        for stage in job.stages:
            train(job, stage)
        if not (job.out / "summary.json").exists():
            report.write(job.out, job.stages, facts(job))
    except KeyboardInterrupt:
        sys.exit("quickstart: stopped; the same command continues from here.")
    except (ValueError, OSError) as error:
        sys.exit(f"quickstart: {error}")
    report.show(job.out)
    print(
        f"\nDone in {time.time() - began:.0f} s. Watch the curves, or ask about a picture of your own:"
    )
    here = Path(sys.executable).parent
    print(f"  {here / 'tensorboard'} --logdir {job.out}")
    print(
        f"  {sys.executable} {ROOT / 'tools/generate.py'} --checkpoint {job.out / 'questions'} \\"
    )
    print(f'      --image {job.out / "sample.png"} --style vqa2 "Which digit is at the top left?"')


def read_arguments(arguments: list[str] | None) -> Job:
    """The command line, with defaults for this machine."""
    import torch

    parser = argparse.ArgumentParser(prog="quickstart.sh", description=__doc__)
    parser.add_argument(
        "--out",
        type=home,
        help="folder of the run (default: runs/quickstart, or runs/quickstart-hard)",
    )
    gpus = max((n for n in (1, 2, 4, 8) if n <= torch.cuda.device_count()), default=0)
    parser.add_argument(
        "--ranks", type=int, default=gpus or 2, help="processes (default: the GPUs up to 8, else 2)"
    )
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="of both stages together (default: %(default)s)"
    )
    parser.add_argument(
        "--hard",
        action="store_true",
        help="3 to 9 digits of 12 to 28 pixels that lie anywhere, instead of 2 to 4 of 23 to 27 in a corner each",
    )
    given = parser.parse_args(arguments)
    if given.steps < 10:
        raise ValueError("--steps must be at least 10.")
    if torch.cuda.is_available() and given.ranks > torch.cuda.device_count():
        raise ValueError(
            f"--ranks {given.ranks} is more than the {torch.cuda.device_count()} GPUs of this machine."
        )
    if given.ranks not in (1, 2, 4, 8):
        raise ValueError(
            f"--ranks {given.ranks} does not divide the 8 sequences of a step; give 1, 2, 4 or 8."
        )
    out = given.out or ROOT / ("runs/quickstart-hard" if given.hard else "runs/quickstart")
    return Job(Path(out).absolute(), given.ranks, given.steps, given.hard)


def claim(job: Job) -> None:
    """Note in the folder which job it belongs to; ValueError if it holds another one or something else."""
    note, wanted = job.out / "job.json", {"ranks": job.ranks, "steps": job.steps}
    wanted |= {"hard": True} if job.hard else {}
    if note.exists():
        there = json.loads(note.read_text())
        if there != wanted:
            raise ValueError(
                f"{job.out} holds another run ({there}, now {wanted}); name another folder with --out."
            )
    elif job.out.exists() and any(job.out.iterdir()):
        raise ValueError(f"{job.out} holds other files; name another folder with --out.")
    else:
        job.out.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(wanted) + "\n")


def make_pictures(job: Job) -> None:
    """Shards of both stages and of the examination; a set that was cut short is made again."""
    counts = {stage: min(count, 10 * job.steps) for stage, count in PICTURES.items()}
    missing = [stage for stage in counts if not (job.out / "data" / stage / ".nv-meta").exists()]
    if not missing:
        return
    with tqdm(
        total=sum(counts[s] for s in missing), desc="compose", unit="picture", dynamic_ncols=True
    ) as bar:
        for stage in missing:
            shutil.rmtree(job.out / "data" / stage, ignore_errors=True)
            split = "heldout" if stage == "examination" else "train"
            write_shards(
                _counted(compose.records(split, stage, counts[stage], job.setting), bar),
                job.out / "data" / stage,
                "digits",
            )


def _counted(items: Iterator, bar: tqdm) -> Iterator:
    for item in items:
        yield item
        bar.update()


def make_tokenizer(job: Job) -> None:
    """A byte-level tokenizer trained on what the first pictures of both stages say."""
    folder = job.out / "tokenizer"
    if (folder / "tokenizer_config.json").exists():
        return
    texts = []
    for stage in job.stages:
        config = settings.load(job.recipe(stage))
        formatter = PromptFormatter(config.data.prompts)
        pictures = compose.records("train", stage, 1000, job.setting)
        for number, (_, parts) in enumerate(pictures):
            about = json.loads(parts["json"])["annotations"]
            texts += [
                m for c in formatter.conversations(about, RandomState(number)) for m in c.messages
            ]
    train_tokenizer(texts, config.model.text.vocab_size, folder, PIECES)


def train(job: Job, stage: str) -> None:
    """One training stage; the second is killed in its middle and resumes from its checkpoint."""
    run, steps = job.out / stage, job.stages[stage]
    if (run / "DONE").exists():
        return
    run.mkdir(exist_ok=True)
    words = [
        f"out={run}",
        f"strategy={STRATEGY}",
        f"data.tokenizer={job.out / 'tokenizer'}",
        f"max_steps={steps}",
        f"data.sources.{stage}.path={job.out / 'data' / stage}",
        f"save_interval={max(1, steps // 2)}",
    ]
    if stage == "questions":
        words.append(f"init_from={job.out / 'captions'}")
    recipe = settings.load(job.recipe(stage))
    words.append(f"micro_batch={recipe.global_batch // job.ranks}")
    for name in ("connector", "vision", "text"):  # a trial of few steps has a shorter warm-up
        words.append(
            f"optim.{name}.warmup_steps={min(getattr(recipe.optim, name).warmup_steps, steps)}"
        )
    with tqdm(total=steps, desc=f"train on {stage}", unit="step", dynamic_ncols=True) as bar:
        killed = run / "killed.jsonl"  # the log as it was when the run was killed
        if stage == "questions" and not killed.exists():
            launch(job, stage, words, bar, kill_at=steps // 2 + min(OVERLAP, steps // 4))
            shutil.copy(run / "log.jsonl", killed)
        launch(job, stage, words, bar)


def launch(job: Job, stage: str, words: list[str], bar: tqdm, kill_at: int | None = None) -> None:
    """Train with the deepspeed launcher until it ends, or kill -9 all its processes once step `kill_at` is logged."""
    run = job.out / stage
    command = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--num_accelerators",
        str(job.ranks),
    ]
    command += [
        "--master_port",
        str(_free_port()),
        "--module",
        "molmo_ds.train",
        *job.recipe(stage),
        *words,
    ]
    threads = max(1, len(os.sched_getaffinity(0)) // job.ranks)
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    began = time.time()
    with open(run / "console.log", "ab") as console:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            time.sleep(0.1)
            step = _show(run, bar)
            # a save that has not finished has another name
            if kill_at is not None and step >= kill_at and checkpoint.steps(run / "checkpoints"):
                break
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    _show(run, bar)
    with open(job.out / "seconds.jsonl", "a") as seconds:
        seconds.write(json.dumps({"stage": stage, "seconds": time.time() - began}) + "\n")
    if kill_at is None and not (run / "DONE").exists():
        lines = (run / "console.log").read_text(errors="replace").splitlines()
        said = [line for line in lines if "molmo_ds: " in line] or lines
        raise ValueError(
            f"training on {stage} stopped ({said[-1].strip()}); all it said is in {run / 'console.log'}."
        )


def _show(run: Path, bar: tqdm) -> int:
    row = report.last_row(run / "log.jsonl")
    if row and row["step"] != bar.n:
        words = f"loss {row['loss']:.3f}, {row['tokens_per_second']:.0f} tokens/s"
        bar.set_postfix_str(words, refresh=False)
        bar.update(row["step"] - bar.n)
    return bar.n


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def facts(job: Job) -> dict:
    """What the summary says of the machine and the set-up."""
    import torch

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {os.cpu_count()} cores"
    )
    return {
        "hard": job.hard,
        "steps": sum(job.stages.values()),
        "ranks": job.ranks,
        "strategy": json.loads(STRATEGY.read_text())["zero_optimization"]
        | {"file": str(STRATEGY.relative_to(ROOT))},
        "device": f"{platform.machine()} {device}",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
    }


if __name__ == "__main__":
    main()
