"""Keeps one run going: starts the deepspeed launcher on the hosts that answer, watches the run, starts it again.

    --hosts host1:8,host2:8 CONFIG.yaml key=value ...
    --hosts hostfile CONFIG.yaml key=value ...        (lines `host1 slots=8`)
    --hosts localhost:2 CONFIG.yaml key=value ...     (no ssh)

It believes only what the run writes on storage that all hosts share: OUT/DONE when it is finished, OUT/heartbeat after
each step. It leaves its own files, and a line in events.jsonl for whatever happens, in OUT/launch/.
"""

import argparse
import signal
import sys

from molmo_ds import rules
from molmo_ds.cli.checked_options import Parser
from molmo_ds.data.order import epochs
from molmo_ds.engine.launching.hosts import read_hosts, refuse_unknown
from molmo_ds.engine.launching.supervise import EXPORTED, Limits, Supervisor, check
from molmo_ds.engine.strategy import AUTO, read_strategy
from molmo_ds.train import read_arguments


def seconds(text: str) -> float:
    """A number above 0, for an option."""
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value


def tries(text: str) -> int:
    """A whole number of 1 or more, for an option."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} starts are none; give 1 or more")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The options; what is left over are settings of the run."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.allow_abbrev = False
    parser.add_argument("--hosts", help="host1:8,host2:8, or a hostfile, or localhost:2")
    parser.add_argument(
        "--start", type=seconds, default=900, help="seconds until the first step (default 900)"
    )
    parser.add_argument(
        "--stall", type=seconds, default=25, help="longest time between two steps (default 25)"
    )
    parser.add_argument(
        "--probe",
        type=seconds,
        default=5,
        help="seconds between two looks at the hosts (default 5)",
    )
    parser.add_argument(
        "--tries",
        type=tries,
        default=5,
        help="starts in a row without a new checkpoint (default 5)",
    )
    parser.add_argument(
        "--backoff",
        type=seconds,
        default=1,
        help="pause after a fault, doubled each time (default 1)",
    )
    parser.add_argument(
        "--export", default=EXPORTED, help=f"variables that all hosts get (default {EXPORTED})"
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and supervise."""
    options = parser()
    given, words = options.parse_known_args(arguments)
    if not given.hosts:
        options.error("--hosts is missing, for example --hosts localhost:2")
    hosts = read_hosts(given.hosts)
    config = read_arguments(words)
    if config is None:
        options.error(
            "--help comes from this tool; the settings of a run are in python -m molmo_ds.train --help"
        )
    check(config)
    rules.refuse(rules.training(config))
    config = epochs.in_steps(config)  # the run is done after these
    if config.strategy != AUTO:
        read_strategy(config.strategy)
    refuse_unknown(hosts)
    limits = Limits(given.start, given.stall, given.probe, given.tries, given.backoff)
    supervisor = Supervisor(config, hosts, limits, given.export)

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        supervisor.run()
    except KeyboardInterrupt as interrupt:
        number = int(interrupt.args[0]) if interrupt.args else signal.SIGINT
        supervisor.stop(number)
        sys.exit(128 + number)
