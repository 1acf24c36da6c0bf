"""The command molmo-ds: one file a command, imported when it is called; tools/*.py are the same commands in a clone."""

import contextlib
import importlib
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path

NOBODY_READS = 141  # 128 and SIGPIPE
COMMANDS = {  # words of the command -> its file, what it does
    "train": (
        "train",
        "train a model; deepspeed, accelerate and torchrun start it as --module molmo_ds.train",
    ),
    "launch": ("launch", "keep one run going on one or more hosts: start, watch, start again"),
    "rehearse": (
        "rehearse",
        "rehearse a recipe with a tiny model, and check what its real run needs",
    ),
    "plan": ("plan", "the bytes per GPU that a run will need"),
    "evaluate": ("evaluate", "score a checkpoint or a server on benchmarks"),
    "ask": ("ask", "ask a trained model about pictures"),
    "serve": ("serve", "serve a model over HTTP (OpenAI chat completions), with a page to try it"),
    "judge": (
        "judge",
        "judge dense captions with a language model behind any OpenAI-compatible URL",
    ),
    "compare": (
        "compare",
        "two evaluations question by question: a paired test, and the replies that changed",
    ),
    "shards make": (
        "make_shards",
        "write shards from a data set, a folder, JSON lines or tars; index tars of others",
    ),
    "shards inspect": ("inspect_shards", "count and check every member of a data set's shards"),
    "shards show": ("show_shards", "a page with the crops, tokens and packing of real batches"),
    "show": ("show", "a page over a run's folder: curves, answers, checkpoints, what happened"),
    "download": ("download", "download public data sets and write them as shards"),
    "convert": (
        "convert",
        "weights: released folders, reference checkpoints, backbones, peft, from and to ours",
    ),
}


def main() -> None:
    """Run `molmo-ds COMMAND ...`; without a command, or with --help, list the commands."""
    with reader_may_leave():
        _command(sys.argv[1:])


def _command(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(usage(""))
        return
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            sys.argv = [f"molmo-ds {name}", *words[length:]]
            run(COMMANDS[name][0])
            return
    if any(name.startswith(f"{words[0]} ") for name in COMMANDS):
        if len(words) > 1 and words[1] in ("-h", "--help"):
            print(usage(words[0]))
            return
        sys.exit(f"molmo-ds: {words[0]} needs a word more.\n{usage(words[0])}")
    sys.exit(f"molmo-ds: there is no command {words[0]}; see molmo-ds --help.")


def usage(first: str) -> str:
    """The commands that begin with a word, a line each."""
    chosen = {name: what for name, (_, what) in COMMANDS.items() if name.startswith(first)}
    lines = [f"  {name:<16}{what}" for name, what in chosen.items()]
    head = "usage: molmo-ds COMMAND ...   (molmo-ds COMMAND --help tells its options)"
    here = Path(__file__).parents[1]
    tail = f"Strategy files and an example of a hostfile are in {here}/ds_configs and {here}/hostfile.example."
    return "\n".join([head, "", *lines, "", tail])


def run(file: str, arguments: list[str] | None = None) -> None:
    """Run a command, with the arguments of this process by default; a user's mistake is a sentence and exit code 1."""
    from molmo_ds import environment

    try:
        with reader_may_leave():
            for sentence in environment.prepare():
                print(f"{caller()}: {sentence}", file=sys.stderr)
            command = importlib.import_module(f"molmo_ds.cli.{file}")
            code = command.main(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"{caller()}: {error}")
    if code:
        sys.exit(code)


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """End quietly where nobody reads on, as in `molmo-ds --help | head`, with the code of a process that a pipe ended.

    A broken pipe of another kind stays an error.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if _is_read():
            raise
        # or the interpreter would try once more, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(NOBODY_READS)


def _is_read() -> bool:
    """Whether what is printed may still have a reader."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return not any(events & select.POLLERR for _, events in poll.poll(0))


def caller() -> str:
    """Name of the command as the user called it: `molmo-ds ask`, or `generate` for tools/generate.py."""
    return Path(sys.argv[0]).stem
