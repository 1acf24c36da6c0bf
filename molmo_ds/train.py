"""One run: build, loop, evaluate, save.

deepspeed --module molmo_ds.train CONFIG.yaml [MORE.yaml ...] key=value ...
accelerate launch --use_deepspeed -m molmo_ds.train CONFIG.yaml key=value ...
torchrun --nproc-per-node N -m molmo_ds.train CONFIG.yaml key=value ...
python -m molmo_ds.train CONFIG.yaml key=value ...            (one process)
"""

import json
import logging
import math
import os
import signal
import sys
import time
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from molmo_ds import environment, files, rules, setting_list, settings, unread
from molmo_ds.config import RunConfig
from molmo_ds.stores import events, same_run

if TYPE_CHECKING:
    from molmo_ds.data.order.loader import Steps
    from molmo_ds.engine import Engine
    from molmo_ds.engine.launch import World
    from molmo_ds.stores.run_folder import RunFolder

log = logging.getLogger("molmo_ds")
SHOWN_SAMPLES = 8  # in the sentence about a step that is not finite


def train(config: RunConfig) -> int:
    """Train until max_steps, stop_after or a signal; the exit code (0, or 128 + the signal that ended it).

    Raises ValueError or OSError, the same on every rank where that can be known, for what the user has to mend.
    """
    from molmo_ds.data.order import epochs
    from molmo_ds.engine import launch
    from molmo_ds.engine.checks.faults import TrainingFault
    from molmo_ds.engine.strategy import AUTO, read_strategy
    from molmo_ds.stores.run_folder import RunFolder
    from molmo_ds.weights import patch_row

    rules.refuse(rules.training(config))
    if config.strategy != AUTO:
        read_strategy(config.strategy)  # refused before the ranks meet
    deadline = time.monotonic() + (config.time_limit_seconds or math.inf)
    world = launch.start(config.timeout_seconds)
    config = world.agree(partial(epochs.in_steps, config))
    for sentence in [*rules.short_warmups(config), *unread.told(config)]:
        log.warning(sentence)
    config = world.agree(partial(patch_row.resolved, config))
    folder = RunFolder(config.out, config.scratch)
    world.agree(folder.open)
    try:
        code = run(config, world, folder, deadline)
        world.agree(folder.close)
    except TrainingFault as fault:
        if world.rank == 0:
            events.note(folder.local, "fault", reason=str(fault))
        raise
    finally:
        folder.release()
    return code


def run(config: RunConfig, world: "World", folder: "RunFolder", deadline: float) -> int:
    """The same in a folder that is this run's alone, until `deadline` of time.monotonic."""
    from molmo_ds.data.order.loader import build_stream
    from molmo_ds.engine import build_engine, ds_config
    from molmo_ds.engine.launching import launchers
    from molmo_ds.engine.plan import choice, compiling, precision
    from molmo_ds.engine.save.writer import Writer
    from molmo_ds.engine.strategy import overruled, read_strategy
    from molmo_ds.engine.strategy import place as strategy_place
    from molmo_ds.eval.in_training.evaluators import build_evaluators
    from molmo_ds.monitor import profile
    from molmo_ds.monitor.metrics import Metrics
    from molmo_ds.weights import checkpoint

    world.agree(lambda: same_run.check_folder(config, folder))
    config = precision.settled(config, world, folder.local)
    config = choice.settled(config, world, folder.local)
    config = compiling.settled(config, world, folder.local)
    told = strategy_place.told(config.strategy)
    told += world.agree(lambda: same_run.told(config, folder))
    strategy = read_strategy(config.strategy)
    half = ds_config.uses_bf16(config, world.device.type != "cpu")
    told += [*launchers.ignored(strategy, config), *overruled.told(strategy, config, half)]
    for sentence in told:
        log.warning(sentence)  # main shows those of rank 0 only
    checkpoints = str(files.place(config.out) / "checkpoints")
    if config.resume:
        Writer(config, world).resume_upload(checkpoints)
    resuming = config.resume and world.agree(lambda: bool(checkpoint.steps(checkpoints)))
    engine = build_engine(replace(config, init_from=None) if resuming else config, world)
    data_state = engine.load(checkpoints) if config.resume else None
    if engine.step:
        log.info("resumed from step %d", engine.step)
    share = engine.data_rank, engine.data_size
    checker = world.rank, world.size
    stream = world.together(partial(build_stream, config, *share, data_state, engine.step, checker))
    evaluators = build_evaluators(config, world)
    last = min(config.max_steps, config.stop_after or config.max_steps)
    if config.dry_run:
        return rehearse(config, world, stream, engine.step)
    world.agree(lambda: same_run.claim_folder(config, folder.local, engine.step >= last))
    metrics = Metrics(config, world, engine.step)
    if world.rank == 0:
        facts = {"step": engine.step, "ranks": world.size, "strategy": config.strategy}
        events.note(folder.local, "start", **facts)
    folder.start()
    signals = catch_signals()
    saved = engine.step
    values = {}
    stopped_by = late = 0
    while engine.step < last and not stopped_by and not late:
        began = time.perf_counter()
        micro_batches, lane_states = next(stream)
        arrived = time.perf_counter()
        with profile.watch(engine, config, arrived - began) as phases:
            values = engine.train_step(micro_batches)
        check_finite(engine, values, stream.samples)
        trained = time.perf_counter()
        for evaluator in evaluators:
            if evaluator.due(engine.step, last):
                values |= evaluator.run(engine, metrics.beat)
        evaluated = time.perf_counter()
        stopped_by, save_now, late = world.largest(
            signals["stop"], signals["save"], int(time.monotonic() > deadline)
        )
        due = engine.step % config.save_interval == 0 or engine.step == last
        if due or stopped_by or save_now or late:
            engine.save(checkpoints, lane_states)
            saved = engine.step
            signals["save"] = 0
        saving = time.perf_counter() - evaluated
        metrics.step(
            engine.step,
            values | phases,
            arrived - began,
            trained - arrived,
            saving,
            evaluated - trained,
        )
    stream.close(partial(world.total, copies=world.size // engine.data_size))
    engine.close()
    metrics.close()
    assert saved == engine.step
    if late and engine.step < last:
        log.info(
            "time_limit_seconds=%g is over at step %d of %d; the same command continues the run",
            config.time_limit_seconds,
            engine.step,
            config.max_steps,
        )
    if world.rank == 0:
        reason = f"signal {stopped_by}" if stopped_by else "time limit" if late else "last step"
        events.note(folder.local, "end", step=engine.step, reason=reason)
    done = folder.local / "DONE"
    if world.rank == 0 and engine.step >= config.max_steps and not done.exists():
        done.write_text(json.dumps({"step": engine.step, "loss": values.get("loss")}) + "\n")
    world.barrier()
    return 128 + stopped_by if stopped_by else 0


def rehearse(config: RunConfig, world: "World", stream: "Steps", step: int) -> int:
    """Say what the run would do and read its first batch; the exit code."""
    from molmo_ds.data.order import epochs
    from molmo_ds.data.order.loader import Mixture

    micro_batches, _ = next(stream)
    stream.close()
    if world.rank == 0:
        for line in epochs.visits(Mixture.open(config), config):
            log.info(line)
        tokens = sum(int((batch.document_ids > 0).sum()) for batch in micro_batches)
        log.info(
            "dry_run: steps %d to %d of %d sequences on %d ranks; the first batch of rank 0 has %d tokens and %d "
            "crops; nothing was trained or written",
            step + 1,
            config.max_steps,
            config.global_batch,
            world.size,
            tokens,
            sum(len(batch.images) for batch in micro_batches),
        )
    world.barrier()
    return 0


def check_finite(
    engine: "Engine", values: dict[str, float], samples: list[list[tuple[str, int, int]]]
) -> None:
    """NotFiniteError, on every rank, where a loss or a gradient norm is not finite: nothing of it may be saved.

    Args:
        values: what the update returned.
        samples: (source, number, epoch) of the samples in each of this rank's micro-batches.
    """
    from molmo_ds.engine.checks.faults import NotFiniteError

    wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if not wrong:
        return
    blamed = [name for i in engine.not_finite if i < len(samples) for name in samples[i]]
    everyone = list(dict.fromkeys(name for names in engine.world.gather(blamed) for name in names))
    engine.close()  # a save under way is of a step that was finite
    shown = ", ".join(f"{source} {number}" for source, number, _ in everyone[:SHOWN_SAMPLES])
    more = f" and {len(everyone) - SHOWN_SAMPLES} more" if len(everyone) > SHOWN_SAMPLES else ""
    where = (
        f"; samples (source, number) in the micro-batches it came from: {shown}{more}"
        if shown
        else ""
    )
    raise NotFiniteError(
        f"Step {engine.step} is not finite ({', '.join(wrong)}){where}. The run ends here and saves nothing of it; "
        "the checkpoints before it are whole. Look at those samples, lower the learning rate, or start from an "
        "earlier checkpoint."
    )


def catch_signals() -> dict[str, int]:
    """SIGTERM and SIGINT ask for a checkpoint and the end, SIGUSR1 for a checkpoint, at the end of the step."""
    signals = {"stop": 0, "save": 0}

    def stop(number: int, frame: object) -> None:
        signals["stop"] = number

    def save(number: int, frame: object) -> None:
        signals["save"] = 1

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGUSR1, save)
    return signals


def read_arguments(arguments: list[str]) -> RunConfig | None:
    """YAML files (the later over the earlier) and key=value overrides in any order; None if help was asked for."""
    if any(argument in ("-h", "--help") for argument in arguments):
        return None
    given = []
    overrides = []
    skip = False
    for argument in arguments:
        # the deepspeed launcher adds it
        if skip or argument.startswith(("--local_rank", "--local-rank")):
            skip = not skip and "=" not in argument
        elif settings.flag(argument):
            overrides.append(argument)
        elif argument.startswith("-") and "=" not in argument:
            raise ValueError(
                f"There is no option {argument}; write settings as key=value (--NAME alone for true), and see --help "
                "for their list."
            )
        elif "=" not in argument or (
            argument.endswith((".yaml", ".yml")) and Path(argument).is_file()
        ):
            given.append(argument)
        else:
            overrides.append(argument)
    said = [word.lstrip("-").partition("=")[0] for word in overrides]
    limited = "timeout_seconds" in [
        *said,
        *(name for path in given for name in settings.read_values(path)),
    ]
    limit = environment.time_limit(limited)
    config, told = environment.below_root(settings.load(given, [*limit, *overrides]))
    told = [*(f"{word} ({environment.MINUTES})" for word in limit), *told]
    for sentence in [*told, *settings.overridden(overrides)]:
        log.info(sentence)
    return config


def print_help() -> None:
    """Usage, and every setting with its default, what it may be, and its comment."""
    print(__doc__)
    print(
        "Settings (defaults of the preset `tiny` apply to model.* unless preset=... says otherwise):"
    )
    print(setting_list.help_text(RunConfig))


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line; an error of the user's is one sentence and exit code 1."""
    from molmo_ds.engine.checks.faults import TrainingFault

    try:
        rank = environment.rank()
    except ValueError as error:
        sys.exit(f"molmo_ds: {error}")
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.ERROR, format="%(message)s", stream=sys.stderr
    )
    try:
        for sentence in environment.prepare():
            log.info(sentence)
        config = read_arguments(sys.argv[1:] if arguments is None else arguments)
        if config is None:
            if rank == 0:
                print_help()
            return
        code = train(config)
    except (ValueError, OSError, TrainingFault) as error:
        # rank 0 says what all have seen; the launcher then ends the others
        time.sleep(2.0 if rank else 0.0)
        print(f"molmo_ds: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    except Exception:  # ours to mend; without destructors, which may wait for a rank that is gone
        traceback.print_exc()
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # destructors abort one launch in forty once a gloo group was used


if __name__ == "__main__":
    main()
