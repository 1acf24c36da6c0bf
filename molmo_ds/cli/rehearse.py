"""Before a real launch: rehearse every stage with a tiny model, and check what the recipe of MODEL needs.

    molmo_7b_d
    molmo2_8b --only-check
    molmo_72b --gpus 32 --gpu-memory 80 --only-check
    molmo_7b_d --mixture 3.2-synthetic-paper --out /scratch/rehearsal

First the rehearsal, with nothing to download: made-up pictures and videos of every data set, the stages (captioner and
multitask; of Molmo2 pretrain, sft and long_context; of HeMolmo captioner and questions), evaluation, export and
questions, by the recipe's own files with a random model of one layer or two. Then, for the real run: data, tokenizer,
weights, disk and memory, with the command that fetches what is missing; steps, positions, GPU-hours and checkpoints.
The exit code is 1 where the rehearsal fails or something is missing.
"""

import argparse
import os
import resource
import shutil
import sys
import time
from pathlib import Path

from molmo_ds.cli.checked_options import Parser
from molmo_ds.config import RunConfig, home
from molmo_ds.rehearse import needs, stages
from molmo_ds.rehearse.figures import cost_of, steps_of
from molmo_ds.rehearse.recipe import Stage, examples_folder, find

COLUMN = 36  # of what was done, before its seconds


def main(arguments: list[str] | None = None) -> int:
    """Rehearse and check; the exit code."""
    given = read_arguments(arguments)
    found = find(given.model, given.mixture, examples_folder())
    failed = 0 if given.only_check else rehearse(found, Path(given.out))
    configs = [stage.load((f"out=runs/{stage.name}-{given.model}",)) for stage in found]
    wanted = [path for config in configs for path in needs.data_folders(config)]
    absent: list[str] = []
    others: list[str] = []
    start = needs.backbones(configs[0].preset, str(configs[0].init_from))
    weights = start
    for stage, config in zip(found, configs):
        absent += check_data(stage, config, given)
        others += check_rest(config, start, weights, given)
        weights = f"train {stage.name}, and give init_from={config.out} to the next stage"
    # one command may bring what several stages lack
    commands = list(dict.fromkeys(needs.downloads(absent, wanted) + others))
    if commands:
        print(f"\nBefore {given.model} can be launched:")
        print("\n".join(f"  {command}" for command in commands))
    else:
        print(f"\nAll that {given.model} needs is there.")
    return int(bool(failed or commands))


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, with defaults for this machine."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a file of examples/captioner, or molmo2_8b, molmo2_4b, molmo2_o_7b, hemolmo_7b_d",
    )
    parser.add_argument(
        "--mixture",
        help="a file of examples/multitask (default 3.2-synthetic), for models of examples/captioner",
    )
    parser.add_argument("--out", type=home, default="runs/rehearsal", help="emptied at the start")
    parser.add_argument("--gpus", type=int, default=8, help="of the real run (default 8)")
    parser.add_argument("--gpu-memory", type=float, default=80, help="GB of one (default 80)")
    # the paper's GPU-hours for Molmo-7B-D come to 17 and 18 % by the count of figures.py
    parser.add_argument("--mfu", type=float, default=0.2, help="share of the peak (default 0.2)")
    parser.add_argument("--only-check", action="store_true", help="leave the rehearsal out")
    given = parser.parse_args(arguments)
    if given.gpus < 1 or given.gpu_memory <= 0 or not 0 < given.mfu <= 1:
        parser.error("--gpus is at least 1, --gpu-memory above 0, --mfu above 0 and at most 1")
    return given


def rehearse(found: list[Stage], folder: Path) -> int:
    """The rehearsal in an empty folder; 1 where it fails."""
    mark = folder / "rehearsal"
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise ValueError(f"{folder} holds other files; name another folder with --out.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mark.touch()
    began = time.monotonic()
    print(f"Rehearsal in {folder}, {stages.RANKS} processes on {os.cpu_count()} cores:")
    try:
        for what, seconds in stages.rehearse(found, folder.absolute()):
            print(f"  {what:<{COLUMN}}{seconds:6.1f} s", flush=True)
    except ValueError as error:
        print(f"molmo-ds rehearse: {error}", file=sys.stderr)
        return 1
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"  {'all of it':<{COLUMN}}{time.monotonic() - began:6.1f} s, {used.ru_utime + used.ru_stime:.0f} s of"
        f" CPU in its processes, at a load of {os.getloadavg()[0]:.1f}"
    )
    return 0


def check_data(stage: Stage, config: RunConfig, given: argparse.Namespace) -> list[str]:
    """Print what a stage's run costs, and which of its data is here; the folders that are not."""
    print(f"\n{stage.name}: {' '.join(os.path.relpath(file) for file in stage.files)}")
    data = {path: needs.data_need(path) for path in needs.data_folders(config)}
    absent = [path for path, need in data.items() if not need.there]
    steps, origin = steps_of(config, data_is_there=not absent)
    print(f"  {steps:,} steps ({origin}) of {config.global_batch} sequences")
    for line in cost_of(config, steps).lines(given.mfu, given.gpus):
        print(f"  {line}")
    print(f"  data: {len(data) - len(absent)} of {len(data)} folders are there")
    for path in absent:
        print(f"    MISSING {data[path].found}")
    return absent


def check_rest(config: RunConfig, start: str, weights: str, given: argparse.Namespace) -> list[str]:
    """Print what else a stage needs; what to do about what is not there.

    Args:
        start: the command that makes the first weights, and the tokenizer with them.
        weights: what gives those that this stage starts from.
    """
    cost = cost_of(config, 1)
    others = (
        needs.tokenizer_need(config, start),
        needs.weights_need(config, weights),
        needs.disk_need(config.out, cost.checkpoint_bytes, config.keep_checkpoints),
        needs.memory_need(config, given.gpus, given.gpu_memory * 1e9),
    )
    for need in others:
        print(f"  {need.what}: {'' if need.there else 'MISSING: '}{need.found}")
    return [need.fetch for need in others if not need.there]
