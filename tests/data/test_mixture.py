"""Rates of a mixture."""

import numpy as np
import pytest

from molmo_ds.config import DataConfig, SourceConfig
from molmo_ds.data.order.mixture import sample_rates


def rates(
    sizes: dict[str, int], groups: dict[str, float] | None = None, **sources: SourceConfig
) -> dict[str, float]:
    return sample_rates(DataConfig(sources=sources, group_rates=groups or {}), sizes)


def test_square_root_of_size() -> None:
    got = rates({"b": 900, "a": 100}, b=SourceConfig(), a=SourceConfig())
    assert list(got) == ["a", "b"] and got == pytest.approx({"a": 0.25, "b": 0.75})
    got = rates({"b": 900, "a": 100}, b=SourceConfig(size=100), a=SourceConfig())
    assert got == pytest.approx({"a": 0.5, "b": 0.5})


def test_a_size_below_one_is_a_share_and_one_is_a_sample() -> None:
    sizes = {"a": 400, "b": 100}
    got = rates(sizes, a=SourceConfig(size=0.25), b=SourceConfig())
    assert got == pytest.approx({"a": 0.5, "b": 0.5})
    got = rates(sizes, a=SourceConfig(size=1), b=SourceConfig(size=0.04))
    assert got == pytest.approx({"a": 1 / 3, "b": 2 / 3})


def test_the_sampling_rate_is_a_factor_on_the_root() -> None:
    got = rates({"a": 400, "b": 100}, a=SourceConfig(sampling_rate=0.5), b=SourceConfig(size=0.25))
    assert got == pytest.approx({"a": 2 / 3, "b": 1 / 3})


def test_groups_follow_the_references_rule() -> None:
    # rate = group rate * sqrt(size) / sum of the group's sqrt, then normalised
    sizes = {"cap": 712000, "vqa": 80000, "doc": 39000, "chart": 28000}
    sources = {name: SourceConfig(group="demo" if name == "cap" else "academic") for name in sizes}
    got = rates(sizes, {"demo": 0.3, "academic": 0.5}, **sources)
    roots = np.sqrt([80000, 39000, 28000])
    expected = dict(zip(("vqa", "doc", "chart"), 0.5 / 0.8 * roots / roots.sum())) | {
        "cap": 0.3 / 0.8
    }
    assert got == pytest.approx(expected) and sum(got.values()) == pytest.approx(1)


def test_named_rates() -> None:
    got = rates({"a": 5, "b": 7}, a=SourceConfig(rate=3), b=SourceConfig(rate=1))
    assert got == pytest.approx({"a": 0.75, "b": 0.25})
    mixed = {
        "a": SourceConfig(rate=1, group="x"),
        "b": SourceConfig(rate=0, group="x"),
        "c": SourceConfig(group="y"),
    }
    assert rates({"a": 5, "b": 7, "c": 9}, **mixed) == pytest.approx({"a": 0.5, "b": 0, "c": 0.5})


@pytest.mark.parametrize(
    ("sources", "groups", "sentence"),
    [
        ({}, {}, "There is no data set"),
        ({"a": SourceConfig(rate=1), "b": SourceConfig()}, {}, "have a rate or none"),
        ({"a": SourceConfig(rate=0)}, {}, "one above 0"),
        ({"a": SourceConfig()}, {"wrong": 1.0}, "group_rates names"),
        ({"a": SourceConfig()}, {"all": 0.0}, "group_rates are all 0"),
    ],
)
def test_refusals(
    sources: dict[str, SourceConfig], groups: dict[str, float], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        rates({"a": 5, "b": 7}, groups, **sources)


def test_a_source_without_samples_is_said() -> None:
    """Its rate would be 0, or that of all: 0 of 0."""
    sources = {"a": SourceConfig(group="x"), "b": SourceConfig(group="y")}
    for sizes in ({"a": 0, "b": 9}, {"a": 0, "b": 0}):
        with pytest.raises(ValueError, match="'a' has no samples"):
            sample_rates(DataConfig(sources=sources), sizes)
    left = DataConfig(sources=sources, group_rates={"x": 0.0, "y": 1.0})
    assert sample_rates(left, {"a": 0, "b": 9}) == {"a": 0.0, "b": 1.0}
