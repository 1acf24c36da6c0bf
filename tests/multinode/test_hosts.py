"""A run on a laboratory of two hosts, by the real deepspeed launcher under tools/launch.py, through every fault."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from supervised import Supervised

from molmo_ds.testing import lab

DETECTED = 30  # seconds from a fault to its detection

pytestmark = pytest.mark.skipif(bool(lab.missing()), reason=lab.missing() or "it can run")


def rank_of(laboratory: lab.Lab, host: str, number: signal.Signals) -> Callable[[], object]:
    """Signal one rank on a host."""
    return lambda: laboratory.kill(host, ("molmo_ds.train", "--local_rank="), number)


def test_a_run_survives_what_happens_to_hosts(
    laboratory: lab.Lab, words: list[str], alone: dict[int, float], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    seen: dict[str, tuple[str, float]] = {}

    def start(hosts: str) -> Supervised:
        said = out.with_suffix(f".{hosts.replace(':', '-')}.txt")
        return Supervised(laboratory, hosts, words, out, out / "launch", said)

    run = start("host1:2,host2:2")
    try:
        run.wait_for_steps(1)
        seen["link cut"] = run.fault(lambda: laboratory.cut("host2"))
        run.wait_for_steps(2)
        assert [event["hosts"] for event in run.events("start")] == ["host1:2,host2:2", "host1:2"]
        laboratory.mend("host2")
        assert run.stop() == 128 + signal.SIGTERM, run.said.read_text()[-3000:]
        stopped = run.steps()[-1]["step"]
        assert (
            run.events("stopping")
            and (out / "checkpoints/latest").read_text() == f"step-{stopped:08d}\n"
        )
        # the host that was lost is taken back
        run = start("host1:1,host2:1")
        run.wait_for_steps(3)
        seen["killed"] = run.fault(rank_of(laboratory, "host2", signal.SIGKILL))
        run.wait_for_steps(4)
        seen["stopped"] = run.fault(rank_of(laboratory, "host1", signal.SIGSTOP))
        run.wait_for_steps(5)
        seen["powered off"] = run.fault(lambda: laboratory.power_off("host1"))
        run.wait("the end", lambda: bool(run.events("done")))
        assert run.process.wait(60) == 0
    finally:
        run.end()
    print({name: f"{reason}, {seconds:.1f} s" for name, (reason, seconds) in seen.items()})
    saved = [event["step"] for event in run.events("fault")]
    # each try went on from a checkpoint of the one before
    assert 0 < saved[0] < saved[1] < saved[2] < saved[3], saved
    last = run.events("start")[2:]
    assert [event["hosts"] for event in last] == ["host1:1,host2:1"] * 3 + ["host2:1"]
    assert all(seconds < DETECTED for _, seconds in seen.values()), seen
    assert seen["stopped"][0].startswith("no step for")  # nothing else tells
    steps = len(alone)
    assert [line["step"] for line in run.steps()] == list(range(1, steps + 1))
    assert lab.losses(out) == pytest.approx(alone, abs=1e-5) and alone[steps] < alone[1] - 0.3
    assert json.loads((out / "DONE").read_text())["step"] == steps
