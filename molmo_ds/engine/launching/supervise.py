"""Keeps one run going: starts the deepspeed launcher on the hosts that answer, watches the run, starts it again.

It believes only what the run writes on storage that all hosts share: OUT/DONE when it is finished, OUT/heartbeat after
each step. It leaves its own files, and a line in events.jsonl for whatever happens, in OUT/launch/, or, where OUT is a
URL, in the launch/ of this machine's scratch folder.
"""

import contextlib
import fcntl
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from molmo_ds import files, settings
from molmo_ds.config import RunConfig
from molmo_ds.engine.launching import signal_run
from molmo_ds.engine.launching.hosts import Host
from molmo_ds.engine.launching.ports import free_port
from molmo_ds.engine.launching.signal_run import MARK
from molmo_ds.engine.launching.ssh import SSH, Pulses, alive, on_each
from molmo_ds.engine.plan import choice
from molmo_ds.files import Remote
from molmo_ds.stores import events
from molmo_ds.stores.mirror import working_folder

LONGEST = 60.0  # seconds between two tries
EXPORTED = (
    "OMP_NUM_THREADS,NCCL_*,GLOO_*,MOLMO_*,HF_*,CUDA_*,LD_LIBRARY_PATH,TRITON_*,TORCH_*,PYTORCH_*,WANDB_*,"
    "AWS_*,S3_*,R2_*,WEKA_*,GOOGLE_*,GCSFS_*,STORAGE_EMULATOR_HOST,OPENAI_API_KEY"
)


@dataclass(frozen=True)
class Limits:
    """Seconds after which silence is a fault, and what to do then."""

    start: float  # from the launcher's start to the first heartbeat
    # between two heartbeats, or 5 times the longest gap of this try where that is more
    stall: float
    probe: float  # between two looks at the hosts
    tries: int  # starts in a row without a new checkpoint before giving up
    backoff: float  # pause after the first of them, doubled each time up to LONGEST


class Supervisor:
    """One run and everything that was started for it."""

    def __init__(self, config: RunConfig, hosts: list[Host], limits: Limits, exported: str) -> None:
        self.config = config
        self.hosts = hosts
        self.limits = limits
        self.place = files.place(config.out)
        self.out = working_folder(config.out, config.scratch).absolute()
        # a store is asked less often, and shows a step some seconds late
        self.pause = 5.0 if isinstance(self.place, Remote) else 0.2
        self.beat = 0
        self.folder = self.out / "launch"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.folder / "lock", "w")  # noqa: SIM115 (held until this process ends)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"Another tools/launch.py looks after {self.out}; stop it first."
            ) from None
        settings.save(config, self.folder / "config.yaml")
        self.settings = str(self.folder / "config.yaml")
        if isinstance(self.place, Remote):  # the hosts share no disk then
            copy = self.place / "launch" / "config.yaml"
            copy.write_bytes((self.folder / "config.yaml").read_bytes())
            self.settings = copy.url
        self.exported = exported
        self.process: subprocess.Popen | None = None
        self.count = 0

    def say(self, event: str, **facts: Any) -> None:
        """Write a line for people and one for events.jsonl."""
        events.note(self.folder, event, **facts)
        values = " ".join(f"{key}={value}" for key, value in facts.items())
        print(f"launch: {time.strftime('%H:%M:%S')} {event} {values}", file=sys.stderr, flush=True)

    def run(self) -> None:
        """Start and restart until the run is done; ValueError if no restart can help."""
        failed = 0
        asked = 0  # times in a row that no host answered
        reached = self.saved()
        reason = ""
        while True:
            answering = alive(self.hosts)
            # processes of this try, an earlier one or another supervisor
            self.signal(answering, signal.SIGKILL)
            self.end_launcher()
            if self.done():
                break
            if failed >= self.limits.tries:
                raise ValueError(
                    f"{failed} starts in a row brought no new checkpoint; the last one ended: {reason}."
                )
            if failed:
                time.sleep(pause(self.limits.backoff, failed))
            used = usable(answering, self.config)
            if not used:
                asked += 1
                self.say("waiting", reason="no host answers")
                time.sleep(pause(5.0, asked))
                continue
            asked = 0
            pulses = Pulses(used)
            try:
                self.start(used)
                reason = self.watch(pulses)
            finally:
                pulses.close()
            if reason is not None:
                failed = 1 if self.saved() > reached else failed + 1
                reached = self.saved()
                self.say("fault", reason=reason, step=reached)
        self.say("done", step=self.config.max_steps)

    def start(self, hosts: list[Host]) -> None:
        """Write the hostfile and start the launcher, on a port of its own."""
        self.count += 1
        local = len(hosts) == 1 and hosts[0].here
        port = free_port() if local else 20000 + (os.getpid() * 37 + self.count * 101) % 10000
        module = ["molmo_ds.train", self.settings]
        words = launcher_words(hosts, self.folder / "hostfile", port, module)
        environment = launcher_environment(
            self.folder / "environment", self.exported, {MARK: str(self.out)}
        )
        self.say("start", hosts=",".join(f"{host.name}:{host.slots}" for host in hosts), port=port)
        self.process = subprocess.Popen(
            words, env=environment, start_new_session=True, stdin=subprocess.DEVNULL
        )

    def watch(self, pulses: Pulses) -> str | None:
        """Wait until the run is done (None) or something is wrong (what)."""
        began = last = looked = time.monotonic()
        beat = self.heartbeat()
        longest = 0.0
        first = True
        while True:
            time.sleep(self.pause)
            if self.done():
                self.wait_for_launcher(60)
                return None
            code = self.process.poll()
            if code is not None:
                time.sleep(1.0)  # for storage that shows new files late
                return None if self.done() else f"the launcher ended with code {code}"
            now = time.monotonic()
            if (new := self.heartbeat()) != beat:
                longest = longest if first else max(longest, now - last)
                beat = new
                last = now
                first = False
            if first and now - began > self.limits.start:
                return f"no step within {self.limits.start:.0f} s"
            if not first and now - last > max(self.limits.stall, 5 * longest):
                return f"no step for {now - last:.0f} s"
            if now - looked > self.limits.probe:
                if lost := pulses.lost():
                    return f"{lost.name} does not answer"
                looked = time.monotonic()

    def heartbeat(self) -> int:
        """Time at which the last step ended, in nanoseconds of the storage's clock; 0 before the first."""
        with contextlib.suppress(OSError):
            self.beat = files.modified_ns(self.place / "heartbeat")
        return self.beat

    def saved(self) -> int:
        """The step of the newest checkpoint, 0 if there is none."""
        try:
            return int((self.place / "checkpoints" / "latest").read_text().strip()[5:])
        except (OSError, ValueError):
            return 0

    def done(self) -> bool:
        """Whether the run itself says that it made all its steps."""
        try:
            return json.loads((self.place / "DONE").read_text())["step"] >= self.config.max_steps
        except (OSError, ValueError, KeyError):
            return False

    def signal(self, hosts: list[Host], number: int, ranks_only: bool = False) -> None:
        """Send a signal to every process of this run on these hosts and on this machine, and to nobody else's."""
        signal_hosts(hosts, str(self.out), number, ranks_only)

    def wait_for_launcher(self, seconds: float) -> None:
        """Until the launcher has ended, or so long."""
        wait(self.process, seconds, kill=False)

    def end_launcher(self) -> None:
        """The launcher had its chance; SIGTERM would make it kill by name on every host."""
        if self.process is not None:
            wait(self.process, 0)

    def stop(self, number: int) -> None:
        """Let the ranks save and end, then end what is left."""
        self.say("stopping", signal=number)
        self.signal(alive(self.hosts), signal.SIGTERM, ranks_only=True)
        if self.process is not None:
            self.wait_for_launcher(max(60.0, self.limits.stall))
        self.signal(alive(self.hosts), signal.SIGKILL)
        self.end_launcher()


def launcher_words(hosts: list[Host], hostfile: Path, port: int, module: list[str]) -> list[str]:
    """DeepSpeed's launcher for a module and its arguments on these hosts; the hostfile is written if it needs one."""
    words = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--quiet",
        "--master_port",
        str(port),
    ]
    if len(hosts) == 1 and hosts[0].here:
        words += ["--hostfile", os.devnull, "--num_accelerators", str(hosts[0].slots)]
    else:
        hostfile.write_text("".join(f"{host.name} slots={host.slots}\n" for host in hosts))
        words += ["--hostfile", str(hostfile), "--force_multi"]
    return [*words, "--module", *module]


def launcher_environment(file: Path, exported: str, more: dict[str, str]) -> dict[str, str]:
    """The launcher's variables; those that the other hosts get too are written to `file`, with `more` among them."""
    lines = [f"{name}={value}\n" for name, value in os.environ.items() if wanted(name, exported)]
    own = Path(os.environ.get("DS_ENV_FILE", ".deepspeed_env"))
    lines += own.read_text().splitlines(keepends=True) if own.is_file() else []
    file.touch(mode=0o600)  # a server's secret is in it
    file.write_text("".join([*lines, *(f"{name}={value}\n" for name, value in more.items())]))
    return {**os.environ, **more, "DS_ENV_FILE": str(file), "PDSH_SSH_ARGS_APPEND": " ".join(SSH)}


def signal_hosts(hosts: list[Host], mark: str, number: int, ranks_only: bool = False) -> None:
    """Send a signal to every process with this mark on these hosts and on this machine, and to nobody else's."""
    words = [sys.executable, "-S", signal_run.__file__, str(int(number)), mark]
    command = shlex.join(words + ["--ranks-only"] * ranks_only)
    with ThreadPoolExecutor(1) as pool:
        remote = pool.submit(on_each, hosts, command, 30)
        signal_run.signal_run(mark, number, ranks_only)
        remote.result()


def wait(process: subprocess.Popen, seconds: float, kill: bool = True) -> bool:
    """Whether it ended in time; else it is killed."""
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        if kill:
            process.kill()
            process.wait()
        return False


def wanted(name: str, exported: str) -> bool:
    """Whether a variable is in a comma-separated list of names and PREFIX_*."""
    return any(
        name == item or (item.endswith("*") and name.startswith(item[:-1]))
        for item in exported.split(",")
    )


def pause(first: float, times: int) -> float:
    """Seconds before the next try: doubled each time up to LONGEST, and up to a quarter more or less.

    Runs that one fault of the file system has ended do not come back to it in step.
    """
    return min(LONGEST, first * 2 ** (times - 1)) * random.uniform(0.75, 1.25)


def usable(hosts: list[Host], config: RunConfig) -> list[Host]:
    """The first of the hosts, as many as the strategy and the global batch allow.

    Raises ValueError if hosts are there and no number of them will do.
    """
    why = None
    for count in range(len(hosts), 0, -1):
        try:
            choice.refuse(config, sum(host.slots for host in hosts[:count]))
            return hosts[:count]
        except ValueError as error:
            why = why or error
    if why:
        raise why
    return []


def check(config: RunConfig) -> None:
    """Refuse what cannot be started again and again (ValueError)."""
    if not config.out:
        raise ValueError(
            "out is empty; give the run a folder that all hosts see, for example out=runs/first."
        )
    for name in ("stop_after", "time_limit_seconds"):
        if getattr(config, name) is not None:
            raise ValueError(
                f"{name} ends a run without DONE, so it would be started again; leave it out."
            )
    if config.dry_run:
        raise ValueError("dry_run makes no step to look after; give it to molmo-ds train.")
    if not config.resume:
        raise ValueError("resume=false would start from step 0 after each fault; leave it out.")
