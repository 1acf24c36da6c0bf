"""examples/cluster: what can be checked where there is no cluster: shells, YAML, and that what they name is there.

train.sbatch runs for real by `bash examples/cluster/try_slurm.sh FOLDER` (root, slurm-wlm, minutes), not here.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "examples/cluster"
SHELLS = ["train.sbatch", "gantry.sh", "try_slurm.sh"]


@pytest.mark.parametrize("script", SHELLS)
def test_shells_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / script)], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed (apt)")
@pytest.mark.parametrize("script", SHELLS)
def test_shells_are_sound(script: str) -> None:
    found = subprocess.run(
        ["shellcheck", str(CLUSTER / script)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


def test_shells_inside_yaml_parse() -> None:
    sky = yaml.safe_load((CLUSTER / "sky.yaml").read_text())
    for text in (sky["setup"], sky["run"], _container()["command"][2]):
        subprocess.run(["bash", "-n", "-c", text], check=True)


def test_what_the_files_name_is_there() -> None:
    named = set()
    for path in CLUSTER.iterdir():
        named |= set(re.findall(r"\b(?:examples|tools|tests)/[\w/]+\.\w+", path.read_text()))
    assert len(named) > 5
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_sky_knows_its_fields() -> None:
    """Those of a task's YAML (SkyPilot's documentation, "Task YAML"); a misspelt one would be refused there."""
    sky = yaml.safe_load((CLUSTER / "sky.yaml").read_text())
    assert sky.keys() <= {
        "name",
        "workdir",
        "num_nodes",
        "resources",
        "envs",
        "secrets",
        "file_mounts",
        "setup",
        "run",
    }
    used = set(re.findall(r"\$\{?(\w+)", sky["run"]))
    given = {"SKYPILOT_NODE_IPS", "SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"}
    assert used <= given | {"SKYPILOT_NUM_GPUS_PER_NODE"} | sky["envs"].keys()


def _container() -> dict[str, Any]:
    job = yaml.safe_load((CLUSTER / "kubernetes.yaml").read_text())
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert replicas["Master"] == replicas["Worker"]
    (container,) = replicas["Master"]["template"]["spec"]["containers"]
    return container


def test_pods_have_what_training_needs() -> None:
    container = _container()
    assert container["name"] == "pytorch", "the operator sets its variables in this one only"
    pod = yaml.safe_load((CLUSTER / "kubernetes.yaml").read_text())
    pod = pod["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    command = container["command"][2]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--nproc-per-node {gpus} " in command and "--nnodes 2 " in command


def test_images_are_built_from_what_is_declared() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    stages = re.findall(r"^FROM \S+ AS (\w+)$", text, re.M)
    assert stages == ["cpu", "build", "gpu"]
    assert set(re.findall(r"--from=(\w+)", text)) == {"build"}
    config = (ROOT / "setup.cfg").read_text()
    for extras in re.findall(r"-e '\.\[([\w,]+)\]'", text):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} =$", config, re.M), extra
