"""What several tests share, made once, which tests --fast leaves out, which run later, and which see GPUs."""

import os
import sys
from pathlib import Path

import pytest

# tests fork ranks, which a process that used a GPU cannot, and more ranks than there may be GPUs: only tests of GPUs
# see them (--gpu), in a run of their own
if "--gpu" not in sys.argv:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from molmo_ds.testing import run_files

HERE = Path(__file__).parent
ON_GPU = {"ops/test_gpu.py": "what only a GPU can show"}  # what --gpu runs
MORE = pytest.StashKey[int]()  # tests that were left out for want of --all
SLOW = {  # file or folder: why it takes its time
    "torture": "runs that are killed at random moments",
    "multinode/test_hosts.py": "two hosts that fail in every way",
    "multinode/test_launchers.py": "each launcher on two hosts",
    "multinode/test_serve_hosts.py": "a server on two hosts that fail",
    "multinode/test_store_hosts.py": "two hosts and a bucket",
    "multinode/test_bench_network.py": "bytes on the wire between two hosts",
    "engine/test_parallel.py": "pipeline, sequence, expert and tensor parallelism against one process",
    "engine/test_molmo2_ranks.py": "pictures and videos under each kind of parallelism",
    "engine/test_hemolmo_ranks.py": "HeMolmo under ZeRO",
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
    "ops/test_cpu_library.py": "compiles the CPU's kernels in processes of their own",
    "goldens/test_a_ranks.py": "the reference's numbers on several ranks",
    "interop/test_transformers.py": "an exported folder in a process of its own",
    "hub/test_remote.py": "exported folders in processes of their own",
    "serve/test_serve_command.py": "a server with all its processes",
    "hub/test_generate_tool.py": "a process for each question",
    "test_examples.py": "the quickstart",
    "twin": "every strategy on the twin of a GPU",
    "test_plan_memory.py": "bytes that torch allocates",
    "test_strategy_files.py": "every strategy on real shards",
    "test_train.py": "whole runs, stopped and resumed",
    "cli/test_wheel.py": "pip install and a run",
    "data/test_bench_stream.py": "streams of every layout",
    "data/test_conversion.py": "worker processes",
    "data/test_malformed.py": "hundreds of damaged files",
    "data/test_faults.py": "servers that fail, which are waited for",
    "data/test_download.py": "servers that fail, which are waited for",
    "serve/test_serve_faults.py": "engines and fronts that are killed",
    "test_docs.py": "builds the site",
    "cli/test_malformed_options.py": "damaged lines of every command",
    "weights/test_malformed_resume.py": "runs that resume from damaged folders",
    "engine/test_scale_collectives.py": "engines among a thousand made-up ranks",
    "stores/test_hosts_save.py": "hosts that are killed while they save into a bucket",
    "stores/test_hosts_in_store.py": "hosts that are killed in mid-upload",
}
ALONE = {  # file or folder: why it waits until the others are done, and then shares the cores with one file at most
    "torture": "kills at moments of milliseconds",
    "multinode": "hosts that must answer within seconds",
    "test_train.py": "kills at random moments, and launchers",
    "test_plan_memory.py": "when a thread of gloo lets its tensors go",
    "engine/test_collectives.py": "a collective that is given up after 3 seconds",
    "engine/test_nvme.py": "DeepSpeed's op, which is compiled with the others",
    "hub/test_convert.py": "memory that is read every half millisecond",
    "data/test_download.py": "a server that is given up after 2 seconds",
    "data/test_faults.py": "a server that is given up after seconds",
    "data/test_loader.py": "workers that end within 10 seconds",
    "serve/test_serve_faults.py": "an engine that is given up after seconds",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """--examples N: how many examples the tests over random draws take; few in the suite, hundreds by hand.

    --fast leaves out what SLOW lists. --all adds what takes hours or environments of its own: the whole table of
    tests/twin, the tools of tests/interop. --gpu runs what ON_GPU lists and nothing else, and lets it see the GPUs.
    """
    parser.addoption("--all", action="store_true")
    parser.addoption("--gpu", action="store_true")
    parser.addoption("--examples", type=int, default=2)
    parser.addoption("--fast", action="store_true")


def pytest_configure(config: pytest.Config) -> None:
    """The mark by which tests/run.sh tells what may run with other tests."""
    config.addinivalue_line(
        "markers", "alone: after the others, beside one file at most (ALONE of tests/conftest.py)"
    )
    config.addinivalue_line("markers", "everything: with --all only")


@pytest.hookimpl(tryfirst=True)  # before -m chooses by the mark
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long comes first, so that two processes end together; what needs DeepSpeed's NVMe op comes last.

    run.sh compiles that op meanwhile, which takes minutes.
    """
    missing = [place for place in (*SLOW, *ALONE) if not (HERE / place).exists()]
    assert not missing, f"SLOW or ALONE names what is not there: {missing}"
    if config.getoption("--gpu"):
        items[:] = [item for item in items if listed(item, ON_GPU)]
    items.sort(key=lambda item: ("nvme" in item.nodeid, not listed(item, SLOW)))
    for item in items:
        if listed(item, ALONE) or "nvme" in item.nodeid:
            item.add_marker("alone")
            item.add_marker(pytest.mark.xdist_group(item.path.stem))  # a file stays in one process
    if not config.getoption("--all"):
        more = {item for item in items if item.get_closest_marker("everything")}
        config.hook.pytest_deselected(items=list(more))
        config.stash[MORE] = len(more)
        items[:] = [item for item in items if item not in more]
    if config.getoption("--fast"):
        left_out = {item for item in items if listed(item, SLOW) or "nvme" in item.nodeid}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what was left out, and how to run it."""
    more = config.stash.get(MORE, 0)
    if more:
        terminalreporter.line(
            f"{more} tests need --all, those of tests/interop also environments (tests/interop/environments.py)"
        )
    if config.getoption("--fast"):
        terminalreporter.section("left out by --fast; bash tests/run.sh runs them")
        for place, why in SLOW.items():
            terminalreporter.line(f"tests/{place}: {why}")
        terminalreporter.line("every test of NVMe: DeepSpeed compiles its op, which takes minutes")


def listed(item: pytest.Item, places: dict[str, str]) -> bool:
    """Whether its file or a folder above it is one of the places."""
    place = item.path.relative_to(HERE)
    return not places.keys().isdisjoint({str(place), *map(str, place.parents)})


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run of a micro model over tiny shards; `out=...` is missing."""
    folder: Path = tmp_path_factory.mktemp("tiny_run")
    return run_files.make(folder)
