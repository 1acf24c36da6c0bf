"""Which file a strategy's path names: the working folder's before the package's, and it is said which."""

from pathlib import Path

import pytest

from molmo_ds.engine import ds_config
from molmo_ds.engine.strategy import place as strategy_place
from molmo_ds.engine.strategy import read_strategy

PACKAGE = Path(ds_config.__file__).parents[1]


def test_the_working_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = "ds_configs/zero3.json"
    assert strategy_place.find(path) == PACKAGE / path
    (told,) = strategy_place.told(path)
    assert str(PACKAGE / path) in told
    assert read_strategy(path).stage == 3
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / path).write_text('{"zero_optimization": {"stage": 1}}')
    assert strategy_place.find(path) == Path(path) and not strategy_place.told(path)
    assert read_strategy(path).stage == 1


def test_a_missing_file_is_refused_with_those_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"no strategy file ds_configs/zero9.json; .*ds_configs/zero1.json"
    ):
        strategy_place.find("ds_configs/zero9.json")
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(
        ValueError, match="no strategy file yours.json; files next to it: mine.json."
    ):
        strategy_place.find("yours.json")
    with pytest.raises(ValueError, match="no strategy file /ds_configs/zero3.json"):
        strategy_place.find("/ds_configs/zero3.json")
    assert not strategy_place.told("accelerate")
