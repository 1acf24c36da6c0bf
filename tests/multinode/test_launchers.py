"""The commands for several hosts in docs/guides/many-hosts.md, as they stand there, on a laboratory of two hosts."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from molmo_ds.testing import lab

ROOT = Path(__file__).parents[2]
STEPS = 3

pytestmark = pytest.mark.skipif(bool(lab.missing()), reason=lab.missing() or "it can run")


def documented(launcher: str, slots: int, hostfile: Path) -> list[str]:
    """The command of the page for two hosts of 8 ranks, for as many ranks as the test has; N is the host's number."""
    page = (ROOT / "docs/guides/many-hosts.md").read_text()
    rows = re.findall(r"^\| several hosts \|.*`(\S+ .*) CONFIG\.yaml \.\.\.`", page, re.M)
    found = [shlex.split(row) for row in rows if row.startswith(launcher)]
    assert len(found) == 1, rows
    ours = {"hostfile": str(hostfile), "8": str(slots), "16": str(2 * slots)}
    return [
        str(Path(sys.executable).with_name(launcher)),
        *(ours.get(word, word) for word in found[0][1:]),
    ]


@pytest.mark.parametrize(
    ("launcher", "slots"), [("deepspeed", 1), ("torchrun", 2), ("accelerate", 1)]
)
def test_a_launcher_on_two_hosts(
    launcher: str,
    slots: int,
    laboratory: lab.Lab,
    words: list[str],
    alone: dict[int, float],
    tmp_path: Path,
) -> None:
    hostfile = tmp_path / "hostfile"
    out = tmp_path / "out"
    said = tmp_path / "said.txt"
    hostfile.write_text(f"host1 slots={slots}\nhost2 slots={slots}\n")
    (tmp_path / "environment").write_text("OMP_NUM_THREADS=1\nDS_ACCELERATOR=cpu\n")
    environment = laboratory.environment() | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment |= {"DS_ENV_FILE": str(tmp_path / "environment")}
    command = [*documented(launcher, slots, hostfile), *words, f"out={out}", f"stop_after={STEPS}"]
    strategy = ["strategy=accelerate"] if launcher == "accelerate" else []
    places = ["head"] if "--hostfile" in command else ["host1", "host2"]
    with open(said, "wb") as stream:
        processes = [
            subprocess.Popen(
                laboratory.words(
                    host, [str(node) if word == "N" else word for word in command] + strategy
                ),
                cwd=ROOT,
                env=environment,
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
            )
            for node, host in enumerate(places)
        ]
    try:
        codes = [process.wait(180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * len(codes), said.read_text()[-4000:]
    manifest = out / f"checkpoints/step-{STEPS:08d}/manifest.json"
    assert json.loads(manifest.read_text())["ranks"] == 2 * slots  # not every host for itself
    assert lab.losses(out) == pytest.approx(
        {step: alone[step] for step in range(1, STEPS + 1)}, abs=1e-5
    )
