"""A run from the command line: three launchers alike, killed and resumed exactly, and the user's mistakes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from molmo_ds import setting_list, settings
from molmo_ds.config import RunConfig
from molmo_ds.stores import events
from molmo_ds.testing import run_files
from molmo_ds.testing.ranks import Forked, free_port, rank_environment
from molmo_ds.train import main, read_arguments

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("TORTURE_KILLS", 3))


def launcher(name: str, ranks: int = 2) -> list[str]:
    """The words before the overrides."""
    module, port, count = "molmo_ds.train", str(free_port()), str(ranks)
    return {
        "deepspeed": [BIN / "deepspeed", "--num_accelerators", count, "--master_port", port, "--module", module],
        "torchrun": [BIN / "torchrun", "--nproc-per-node", count, "--master-port", port, "-m", module],
        "accelerate": [
            BIN / "accelerate", "launch", "--config_file", ROOT / "ds_configs/accelerate/zero3.yaml",
            "--num_processes", count, "--main_process_port", port, "-m", module,
        ],
    }[name]  # fmt: skip


def start(words: list, **options) -> subprocess.Popen:
    """A process (its own group) whose output is kept."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.Popen(
        [str(word) for word in words], cwd=ROOT, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
    )  # fmt: skip


def finish(process: subprocess.Popen, timeout: float = 240) -> tuple[int, str]:
    """(exit code, output); everything of its group is ended if it takes too long."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"still running after {timeout} s:\n{output[-3000:]}")
    return process.returncode, output


def losses(out: Path) -> dict[int, float]:
    """Step -> loss of log.jsonl; every step once."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), (
        "steps are missing or repeated"
    )
    return {line["step"]: line["loss"] for line in lines}


@pytest.fixture(scope="module")
def launched(tiny_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two steps by each launcher on two ranks, and by python alone."""
    outs = {}
    outs["python"] = tmp_path_factory.mktemp("python") / "out"
    code, output = Forked(
        [*tiny_run, "max_steps=2", f"out={outs['python']}"], outs["python"].with_suffix(".txt")
    ).finish()
    assert code == 0, output[-3000:]
    for name in ("deepspeed", "torchrun", "accelerate"):
        outs[name] = tmp_path_factory.mktemp(name) / "out"
        extra = ["strategy=accelerate"] if name == "accelerate" else []
        code, output = finish(
            start([*launcher(name), *tiny_run, "max_steps=2", f"out={outs[name]}", *extra])
        )
        assert code == 0, output[-3000:]
    return outs


def test_launchers_give_the_same_losses(launched: dict[str, Path]) -> None:
    alone, *two_ranks = (losses(out) for out in launched.values())
    assert len(alone) == 2 and alone[1] != alone[2]
    assert two_ranks[0] == two_ranks[1] == two_ranks[2]
    assert two_ranks[0] == pytest.approx(alone, abs=1e-5)


def test_what_a_run_leaves(launched: dict[str, Path], tiny_run: list[str]) -> None:
    out = launched["deepspeed"]
    assert json.loads((out / "DONE").read_text()) == {"step": 2, "loss": losses(out)[2]}
    # what the run decided is said too
    decided = [
        "max_steps=2",
        f"out={out}",
        "model.connector.patch_row=zero",
        "precision=fp32",
        "compile=false",
    ]
    assert settings.load(out / "config.yaml") == settings.load(None, [*tiny_run, *decided])
    assert list((out / "tensorboard").glob("events.*"))
    start, end = map(json.loads, (out / events.NAME).read_text().splitlines())
    assert (start["event"], start["step"], start["ranks"]) == ("start", 0, 2)
    assert (end["event"], end["step"], end["reason"]) == ("end", 2, "last step")
    line = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    assert line["lr/text"] == pytest.approx(1e-4) and line["tokens"] > 100
    assert (
        0.3 < line["packing_fill"] <= 1
        and 0 <= line["data_wait_share"] < 1
        and line["memory_bytes"] > 1e8
    )
    assert (out / "checkpoints" / "latest").read_text() == "step-00000002\n"


def two_ranks(words: list[str], folder: Path) -> list[Forked]:
    """A run on two ranks."""
    port = free_port()
    return [
        Forked(words, folder / f"said{rank}.txt", rank_environment(rank, 2, port))
        for rank in range(2)
    ]


def test_killed_at_random_moments_and_resumed(tiny_run: list[str], tmp_path: Path) -> None:
    """kill -9 of a two-rank run at random moments; the losses are those of a run that was left alone."""
    words = [*tiny_run, "max_steps=6", "save_interval=1", "strategy=auto"]
    whole, out = tmp_path / "alone", tmp_path / "killed"
    for rank in two_ranks([*words, f"out={whole}"], tmp_path):
        code, output = rank.finish()
        assert code == 0, output[-3000:]
    draw = random.Random(20261122)
    for _ in range(KILLS):
        ranks = two_ranks([*words, f"out={out}"], tmp_path)
        wait_for_steps(ranks[0], out, draw.randrange(1, 6))
        time.sleep(draw.random() * 0.3)
        draw.shuffle(ranks)
        for rank in ranks:  # what a launcher does when one has died
            rank.kill(signal.SIGKILL)
            time.sleep(draw.random() * 0.1)
    for rank in two_ranks([*words, f"out={out}"], tmp_path):
        code, output = rank.finish()
        assert code == 0, output[-3000:]
    assert losses(out) == losses(whole) and len(losses(out)) == 6
    assert (out / "DONE").exists()
    assert settings.read_values(out / "config.yaml")["strategy"] == "ds_configs/zero1.json"


def test_evaluators_log_under_their_names_and_change_nothing(
    tiny_run: list[str], tmp_path: Path
) -> None:
    source = next(w for w in tiny_run if w.startswith("data.sources.grey.path=")).partition("=")[2]
    told = [f"evaluators.{name}.path={source}" for name in ("some", "few")]
    told += [
        "evaluators.some.interval=2",
        "evaluators.few.interval=null",
        "evaluators.few.examples=2",
    ]
    for name, more in (("alone", []), ("watched", [*told, "log_interval=4"])):
        for rank in two_ranks([*tiny_run, *more, f"out={tmp_path / name}"], tmp_path):
            code, output = rank.finish()
            assert code == 0, output[-3000:]
    lines = [
        json.loads(line) for line in (tmp_path / "watched" / "log.jsonl").read_text().splitlines()
    ]
    seen = {line["step"]: line for line in lines}
    assert list(seen) == [1, 2, 4], "a step with an evaluation has a line"
    assert {step: line["loss"] for step, line in seen.items()}.items() <= losses(
        tmp_path / "alone"
    ).items()
    kinds = ("loss", "ce_loss", "z_loss", "accuracy", "examples", "seconds")
    some = [f"eval/some/{kind}" for kind in kinds]
    few = [f"eval/few/{kind}" for kind in kinds]
    named = {step: [key for key in line if key.startswith("eval/")] for step, line in seen.items()}
    assert named == {1: [], 2: some, 4: some + few}
    assert seen[4]["eval/some/examples"] == 40 and seen[4]["eval/few/examples"] == 2
    assert (
        len({seen[2]["eval/some/loss"], seen[4]["eval/some/loss"], seen[4]["eval/few/loss"]}) == 3
    )


def wait_for_steps(run: Forked, out: Path, steps: int, timeout: float = 60) -> None:
    """Until the log has so many lines, or the run has ended."""
    deadline = time.monotonic() + timeout
    while len(losses_so_far(out)) < steps and run.running() and time.monotonic() < deadline:
        time.sleep(0.01)


def losses_so_far(out: Path) -> list[str]:
    """Lines of the log of a run that is going on."""
    return (out / "log.jsonl").read_text().splitlines() if (out / "log.jsonl").exists() else []


def test_sigusr1_saves_and_sigterm_saves_and_ends(tiny_run: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [*tiny_run, "max_steps=500", "save_interval=500", "strategy=ds_configs/zero1.json"]
    run = Forked([*words, f"out={out}"], tmp_path / "said.txt")
    wait_for_steps(run, out, 2)
    run.kill(signal.SIGUSR1)
    deadline = time.monotonic() + 30
    while not (out / "checkpoints" / "latest").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    early = int((out / "checkpoints" / "latest").read_text().strip()[5:])
    run.kill(signal.SIGTERM)
    code, output = run.finish()
    assert code == 128 + signal.SIGTERM, output[-3000:]
    step = int((out / "checkpoints" / "latest").read_text().strip()[5:])
    assert early < step == len(losses(out)) < 500
    assert json.loads((out / events.NAME).read_text().splitlines()[-1])["reason"] == "signal 15"
    assert not (out / "DONE").exists()


def sentence(words: list[str], folder: Path) -> str:
    """What a run that must fail says: one sentence, exit code 1, no traceback."""
    code, output = Forked(words, folder / "said.txt").finish()
    said = [line for line in output.splitlines() if line.startswith("molmo_ds: ")]
    assert code == 1 and len(said) == 1 and "Traceback" not in output, output[-3000:]
    return said[0]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_of_another_run_is_left_alone(
    launched: dict[str, Path], tiny_run: list[str], tmp_path: Path
) -> None:
    out = launched["python"]
    before = tree(out)
    said = sentence([*tiny_run, "global_batch=8", f"out={out}"], tmp_path)
    assert (
        f"{out} holds another run (its global_batch is 4, not 8)" in said
        and "overwrite=true" in said
    )
    assert tree(out) == before


def test_fewer_samples_than_ranks_can_use(tiny_run: list[str], tmp_path: Path) -> None:
    said = sentence([*tiny_run, "global_batch=64", f"out={tmp_path / 'out'}"], tmp_path)
    assert "samples" in said and "64" in said


def test_a_truncated_shard(tiny_run: list[str], tmp_path: Path) -> None:
    import shutil

    folder = next(w.partition("=")[2] for w in tiny_run if w.startswith("data.sources.grey.path"))
    shards = shutil.copytree(folder, tmp_path / "shards")
    tar = sorted(shards.glob("*.tar"))[0]
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    said = sentence(
        [*tiny_run, f"data.sources.grey.path={shards}", f"out={tmp_path / 'out'}"], tmp_path
    )
    assert str(tar) in said


def test_every_checkpoint_damaged(
    launched: dict[str, Path], tiny_run: list[str], tmp_path: Path
) -> None:
    import shutil

    out = shutil.copytree(launched["python"], tmp_path / "out")
    for saved in (out / "checkpoints").glob("step-*"):
        file = saved / "rank-00000.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
    before = tree(out / "checkpoints")
    said = sentence([*tiny_run, "max_steps=3", f"out={out}"], tmp_path)
    assert "None of the 1 checkpoints" in said and str(out) in said
    assert tree(out / "checkpoints") == before


def test_help_names_every_setting(capsys: pytest.CaptureFixture) -> None:
    main(["--help"])
    said = capsys.readouterr().out
    for setting in setting_list.settings(RunConfig):
        assert f"  {setting.name} = {setting.default!r}" in said
    assert "packing = 'pack'  (pack, knapsack, to_max or to_128)" in said, "choices"
    assert "max_bad_share = 0.001  (a number from 0 to 1)  undecodable samples above" in said, (
        "range and comment"
    )


def test_arguments_that_launchers_add() -> None:
    assert read_arguments(["--local_rank=1", "seed=3"]).seed == 3
    assert read_arguments(["--local_rank", "1", "seed=3", "max_steps=4"]).max_steps == 4
    with pytest.raises(ValueError, match="nearest one is 'optim.text.lr'"):
        read_arguments(["optim.text.lrr=1"])
    with pytest.raises(ValueError, match="no configuration file"):
        read_arguments(["nothing.yaml"])


def test_words_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 5\nmax_steps: 7\n")
    orders = (
        ["--seed=3", str(file), "wandb=null"],
        ["--wandb=null", "seed=3", str(file)],
        [str(file), "seed=3"],
    )
    assert len({read_arguments(words).seed for words in orders}) == 1
    assert read_arguments(orders[0]) == read_arguments(orders[1]) == read_arguments(orders[2])
    with pytest.raises(ValueError, match="no configuration file other.yaml"):
        read_arguments([str(file), "other.yaml"])
    with pytest.raises(ValueError, match="no option --seed; write settings as key=value"):
        read_arguments(["--seed", str(file)])
    assert read_arguments(["--overwrite", str(file)]).overwrite
    with pytest.raises(ValueError, match="no option --deepspeed_config"):
        read_arguments(["--deepspeed_config", "ds.json"])


def test_run_files_are_what_they_say() -> None:
    parts = [part for _, part in run_files.records()]
    assert sum("png" not in part for part in parts) == 8 and len(parts) == 40
