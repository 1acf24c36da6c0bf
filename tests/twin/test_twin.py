"""The branches for GPUs on the twin of a GPU: kernels, every strategy, checkpoints, whole runs, answers.

A part of the table runs here, all of it by hand: pytest tests/twin --all
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import twin_cases
from torch import Tensor
from twin_cases import Case, config_of, network, table

from molmo_ds.model.molmo import component
from molmo_ds.ops import dispatch
from molmo_ds.testing import tables
from molmo_ds.testing.everything import EVERYTHING
from molmo_ds.testing.oracle import difference, plain

HERE = Path(__file__).parent
CASES = table(EVERYTHING)
IDS = [case.name.replace(" ", "-") for case in CASES]
pytestmark = [
    pytest.mark.timeout(36000 if EVERYTHING else 600),
    pytest.mark.skipif(
        shutil.which("g++") is None or torch.version.cuda is not None,
        reason="no g++, or a build of torch that has CUDA: nothing of the twin is checked",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the process on the twin writes."""
    return tmp_path_factory.mktemp("twin")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """What run_on_twin.py found."""
    command = [sys.executable, "-m", "molmo_ds.testing.twin", str(HERE / "run_on_twin.py")]
    environment = {**os.environ, "MOLMO_DS_TWIN_DEVICES": "4", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(folder), *(["--all"] if EVERYTHING else [])],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "found.pt", weights_only=False)


@pytest.fixture(scope="module")
def oracles() -> dict[tuple[str, bool], tuple]:
    """One plain process in fp32, by decoder and whether there are adapters."""
    kinds = {(case.decoder, case.adapters): case for case in CASES if case.precision == "fp32"}
    return {kind: plain(config_of(case)) for kind, case in kinds.items()}


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_equals_one_plain_process(found: dict, oracles: dict, case: Case) -> None:
    losses, norms, expected = oracles[case.decoder, case.adapters]
    run = found["strategies"][case][0]
    assert run["device"].startswith("cuda:")
    if case.precision == "bf16":
        assert [values["loss"] for values in run["log"]] == pytest.approx(losses, abs=2e-2)
        return
    for values, loss, parts in zip(run["log"], losses, norms, strict=True):
        assert values["loss"] == pytest.approx(loss, abs=1e-5)
        for part, norm in parts.items():
            assert values[f"grad_norm/{part}"] == pytest.approx(norm, rel=1e-5), part
    if case.adapters:  # whole weights leave a run with the adapters merged
        return
    assert run["weights"].keys() == expected.keys()
    for name, weight in run["weights"].items():
        torch.testing.assert_close(weight, expected[name], atol=3e-6, rtol=1e-5, msg=name)


def test_a_hundredth_too_much_would_be_seen(oracles: dict) -> None:
    losses, norms, weights = oracles["qwen2", False]
    fp32 = next(case for case in CASES if case.precision == "fp32" and not case.adapters)
    wrong, wrong_norms, wrong_weights = plain(config_of(fp32), too_large=0.01)
    assert difference((wrong, wrong_weights), (losses, weights))[1] > 1e-4
    assert wrong_norms[0]["text"] == pytest.approx(1.01 * norms[0]["text"], rel=1e-3)


def test_bf16_computes_in_bf16(found: dict) -> None:
    """So that the rows in bf16 are no second run in fp32."""
    runs = found["strategies"]
    pairs = [(case, Case(**vars(case) | {"precision": "bf16"})) for case in CASES]
    for single, half in pairs:
        if single.precision == "fp32" and half in runs:
            losses = [[values["loss"] for values in runs[c][0]["log"]] for c in (single, half)]
            assert losses[0] != losses[1], single.name


def test_held_out_loss_is_the_same_under_every_strategy(found: dict) -> None:
    kinds: dict[tuple[str, bool], list[float]] = {}
    for case, ranks in found["strategies"].items():
        if case.precision == "fp32":
            kinds.setdefault((case.decoder, case.adapters), []).append(ranks[0]["held_out"])
    assert all(max(losses) - min(losses) <= 2e-5 for losses in kinds.values())


HALF = [case for case in CASES if case.precision == "bf16"]


@pytest.mark.parametrize("case", HALF, ids=lambda case: case.name.replace(" ", "-"))
def test_a_step_waits_no_more_than_the_table_says(found: dict, case: Case) -> None:
    """The table is docs/evidence/gpu.md's; run_on_twin.py --write makes it again."""
    rows = [row for row in tables.read("waits of a step") if row[0] == case.name]
    assert rows or EVERYTHING, "not in the table"
    limits = {(ours, deepspeed): int(waits) for _, waits, ours, deepspeed in rows}
    for place, waits in twin_cases.most_waits(found["strategies"][case]).items():
        known = tuple(name or "-" for name in place)
        assert EVERYTHING or waits <= limits.get(known, 0), (place, waits)


def test_the_host_waits_once_a_step_where_it_can() -> None:
    """What the tables' rows sum to: ZeRO-2 once; ZeRO-3 once too, and once a micro-step, which is DeepSpeed's own."""
    sums: dict[str, int] = {}
    for name, waits, *_ in tables.read("waits of a step"):
        sums[name] = sums.get(name, 0) + int(waits)
    assert sums["zero2 2 ranks qwen2 micro 4 one_in_two bf16"] == 1
    assert sums["zero3 2 ranks qwen2 micro 2 full bf16"] == 1 + 2


def test_a_step_launches_no_more_than_the_table_says(found: dict) -> None:
    rows = tables.read("kernels of a step")
    limits = {(name, part): (int(n), float(gb)) for name, part, n, gb, _ in rows}
    for name, parts in found["counted"].items():
        for part in parts:
            launches, gigabytes = limits[name, part.part]
            assert part.launches <= launches, (name, part)
            assert part.pointwise / 1e9 <= gigabytes + 0.05, (name, part)


def test_no_group_of_ranks_keeps_nccls_own_time_out(found: dict) -> None:
    """Of the groups that DeepSpeed and we make; run_ranks asks for 60 seconds."""
    seen = [rank["timeouts"] for ranks in found["strategies"].values() for rank in ranks]
    assert set().union(*seen) == {60.0}


def test_a_checkpoint_gives_the_next_loss_to_the_bit(found: dict) -> None:
    for rank in found["resumed"]:
        chosen = twin_cases.RESUMED_BY_HAND if EVERYTHING else twin_cases.RESUMED
        assert rank.keys() == set(chosen)
        assert all(losses[0] == losses[1] for losses in rank.values())


def test_another_order_of_gradients_is_told_on_every_rank(found: dict) -> None:
    first, second = found["other_order"]
    assert first == second
    assert "become ready in different orders: gradient " in first


def test_planted_races_are_found(found: dict) -> None:
    seen = found["planted"]
    assert all(math.isnan(value) for value in seen["before a wait"])
    assert seen["after it"] == [1.0] * 4
    assert seen["overwritten"] == 1
    assert seen["race", False] and not seen["race", True]
    assert seen["feed", False] and not seen["feed", True]
    assert seen["save", False] and not seen["save", True]
    assert seen["saved"] == [1.0] * 4
    # slices of one tensor are copied at once
    first = {"a": [1.0, 2.0, 3.0], "b": [6.0, 7.0, 8.0], "alone": [-1.0, -1.0]}
    second = {"a": [2.0, 3.0, 4.0], "b": [7.0, 8.0, 9.0], "alone": [-1.0, -1.0]}
    assert seen["slices"] == [(2, first), (2, second)]


def test_two_ranks_that_both_send_first_hang(found: dict) -> None:
    """As under NCCL; gloo alone would let them pass. Pipelines of the table run by the same rule."""
    first, second = found["crossed"]
    assert first == {"in turn": "got 1", "both send": "hangs"}
    assert second == {"in turn": "got 0", "both send": "hangs"}


def test_nothing_is_read_or_overwritten_before_its_copy_was_waited_for(found: dict) -> None:
    logs, overwritten = found["late"]
    usual = {case.name: left[0]["log"] for case, left in found["strategies"].items()}
    assert logs == [usual[case.name] for case in twin_cases.LATE]
    assert overwritten == 0


def test_a_run_goes_from_shards_to_done(found: dict, folder: Path) -> None:
    codes, said = found["whole_run"]
    assert codes == [0, 0], said[-2000:]
    assert json.loads((folder / "out/DONE").read_text())["step"] == 2
    lines = [json.loads(line) for line in (folder / "out/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["mfu"] > 0 and line["memory_bytes"] > 0 for line in lines)


@pytest.mark.skipif(not EVERYTHING, reason="half a minute of waiting: pytest tests/twin --all")
def test_a_lost_rank_ends_the_run_after_the_time_out_and_a_late_one_does_not(found: dict) -> None:
    """As NCCL's watchdog does: no exception in Python, an abort (docs/evidence/gpu.md)."""
    lost = found["lost"]
    for how in ("killed", "stopped"):
        code, seconds = lost[how]
        assert code == -signal.SIGABRT
        assert seconds < 24  # three time-outs of run_on_twin.SILENCE
    assert lost["late"][0] is None


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


@pytest.mark.parametrize("decoder", ["qwen2", "olmoe"])
def test_kernels_give_the_loss_and_gradients_of_a_cpu(found: dict, decoder: str) -> None:
    loss, gradients = network("cpu", decoder, "torch")
    runs = {key: run for key, run in found["apart"][0].items() if key[0] == decoder}
    assert (decoder, None) in runs, "what a GPU chooses"
    for on_twin, theirs in runs.values():
        assert on_twin == pytest.approx(loss, rel=2e-6)
        assert theirs.keys() == gradients.keys()
        for part in ("connector", "vision", "text"):
            names = [name for name in gradients if component(name) == part]
            both = [torch.cat([g[n].flatten() for n in names]) for g in (theirs, gradients)]
            assert relative(*both) <= 1e-5, part  # 3.1e-6 seen
        for name, gradient in gradients.items():
            # the exact gradient of a key's bias is zero
            if not name.endswith("k_proj.bias"):
                assert relative(theirs[name], gradient) <= 2e-5, name


def test_the_cascade_by_flash_attention(found: dict) -> None:
    exact = twin_cases.cascade("cpu", "torch", torch.float64)
    rounded = twin_cases.cascade("cpu", "torch", torch.bfloat16)
    for ours, half, reference in zip(found["apart"][0]["cascade"], rounded, exact, strict=True):
        assert 0 < relative(ours, reference) <= 1.5 * relative(half, reference)


def test_answers_are_those_of_a_cpu(found: dict, folder: Path) -> None:
    with dispatch.use("torch"):
        expected = twin_cases.answers(str(folder / "weights"), "cpu")
    assert found["apart"][1] == expected
    assert len(set(expected)) == 3, "unlike questions"
