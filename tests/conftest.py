"""What several tests share, made once, and which tests --fast leaves out."""

from pathlib import Path

import pytest

from molmo_ds.testing import run_files

HERE = Path(__file__).parent
SLOW = {  # file or folder: why it takes its time
    "torture": "runs that are killed at random moments",
    "multinode/test_hosts.py": "two hosts that fail in every way",
    "multinode/test_launchers.py": "each launcher on two hosts",
    "multinode/test_bench_network.py": "bytes on the wire between two hosts",
    "engine/test_parallel.py": "pipeline, sequence, expert and tensor parallelism against one process",
    "engine/test_unlike_ranks.py": "every strategy with unlike amounts of work",
    "engine/test_lora.py": "LoRA under every strategy",
    "engine/test_nvme.py": "compiles DeepSpeed's op for NVMe",
    "engine/test_resume_elsewhere.py": "a checkpoint of each strategy read by each other",
    "engine/test_checkpoint.py": "saving and resuming on other numbers of ranks",
    "engine/test_compiled.py": "torch.compile",
    "engine/test_profile.py": "profiles of whole steps",
    "engine/test_not_finite.py": "runs that end in NaN",
    "ops/test_triton.py": "Triton's interpreter",
    "ops/test_ahead_of_time.py": "compiles the kernels for GPUs",
    "ops/test_cuda.py": "compiles the CUDA kernels for the CPU",
    "goldens/test_a_ranks.py": "the reference's numbers on several ranks",
    "hub/test_remote.py": "exported folders in processes of their own",
    "serve/test_serve_command.py": "a server with all its processes",
    "hub/test_generate_tool.py": "a process for each question",
    "test_examples.py": "the quickstart",
    "test_plan_memory.py": "bytes that torch allocates",
    "test_train.py": "whole runs, stopped and resumed",
    "cli/test_wheel.py": "pip install and a run",
    "data/test_bench_stream.py": "streams of every layout",
    "data/test_conversion.py": "worker processes",
    "data/test_malformed.py": "hundreds of damaged files",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """--examples N: how many examples the tests over random draws take; few in the suite, hundreds by hand.

    --fast leaves out what SLOW lists.
    """
    parser.addoption("--examples", type=int, default=2)
    parser.addoption("--fast", action="store_true")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What needs DeepSpeed's NVMe op comes last: run.sh compiles it meanwhile, which takes minutes."""
    items.sort(key=lambda item: "nvme" in item.nodeid)
    if config.getoption("--fast"):
        missing = [place for place in SLOW if not (HERE / place).exists()]
        assert not missing, f"SLOW names what is not there: {missing}"
        left_out = [item for item in items if slow(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not slow(item)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what --fast left out."""
    if config.getoption("--fast"):
        terminalreporter.section("left out by --fast; bash tests/run.sh runs them")
        for place, why in SLOW.items():
            terminalreporter.line(f"tests/{place}: {why}")


def slow(item: pytest.Item) -> bool:
    """Whether SLOW lists its file or a folder above it."""
    place = item.path.relative_to(HERE)
    return not SLOW.keys().isdisjoint({str(place), *map(str, place.parents)})


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run of a micro model over tiny shards; `out=...` is missing."""
    folder: Path = tmp_path_factory.mktemp("tiny_run")
    return run_files.make(folder)
