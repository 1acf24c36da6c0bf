"""What a process takes for itself of its machine before it trains."""

import pytest

from molmo_ds.engine import launch
from molmo_ds.engine.launch import World
from molmo_ds.engine.launching.supervise import EXPORTED, wanted
from molmo_ds.testing.ranks import run_ranks


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, 16),
        ({"LOCAL_WORLD_SIZE": "8"}, 2),
        ({"LOCAL_SIZE": "4"}, 4),
        ({"LOCAL_WORLD_SIZE": "2", "LOCAL_SIZE": "4"}, 8),
        ({"LOCAL_WORLD_SIZE": "64"}, 1),
        ({"LOCAL_WORLD_SIZE": "8", "OMP_NUM_THREADS": "5"}, None),
    ],
)
def test_threads_share_the_cores(environment: dict[str, str], threads: int | None) -> None:
    assert launch.thread_count(environment, 16) == threads


def test_segments_that_grow_unless_it_is_said() -> None:
    assert launch.allocator_setting({}) == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        assert launch.allocator_setting({name: "max_split_size_mb:64"}) == {}


@pytest.mark.parametrize(
    ("name", "handed_on"),
    [
        ("PYTORCH_CUDA_ALLOC_CONF", True),
        ("WANDB_API_KEY", True),
        ("AWS_CREDENTIALS", True),
        ("GOOGLE_APPLICATION_CREDENTIALS_JSON", True),
        ("HF_ACCESS_TOKEN", True),
        ("MOLMO_DATA_DIR", True),
        ("WEKA_ENDPOINT_URL", True),
        ("R2_PROFILE", True),
        ("S3_PROFILE", True),
        ("NCCL_TIMEOUT_MINUTES", True),
        ("PATH", False),
        ("HOME", False),
        ("SSH_AUTH_SOCK", False),
    ],
)
def test_what_other_hosts_get(name: str, handed_on: bool) -> None:
    assert wanted(name, EXPORTED) == handed_on


def decide_together(world: World, listings: list[list[str]]) -> tuple[list[str], list[int], str]:
    """(what was agreed, the ranks that looked here, what was said of a refusal)."""
    looked = []

    def look() -> list[str]:
        looked.append(world.rank)
        return listings[world.rank]

    def refuse() -> None:
        raise ValueError(f"refused on rank {world.rank}")

    agreed = world.agree(look)
    with pytest.raises(ValueError) as refusal:
        world.agree(refuse)
    return agreed, looked, str(refusal.value)


def test_rank_0_alone_decides() -> None:
    """Over NFS two ranks may list a folder differently."""
    found = run_ranks(decide_together, 2, [["step-1"], ["step-1", "step-2"]])
    assert found == [
        (["step-1"], [0], "refused on rank 0"),
        (["step-1"], [], "refused on rank 0"),
    ]
