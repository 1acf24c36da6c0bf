"""A run that is started again in its folder: refused if it is another, and told which settings have changed."""

from pathlib import Path

import pytest

from molmo_ds import settings
from molmo_ds.config import RunConfig
from molmo_ds.stores import same_run
from molmo_ds.stores.run_folder import RunFolder


def config(*overrides: str) -> RunConfig:
    return settings.load(overrides=["data.sources.a.path=/a", *overrides])


@pytest.fixture
def begun(tmp_path: Path) -> RunFolder:
    """The folder of a run that has logged a step."""
    folder = RunFolder(str(tmp_path / "out"), None)
    same_run.claim_folder(config(f"out={tmp_path / 'out'}"), folder.local, finished=False)
    (folder.local / "log.jsonl").write_text("{}\n")
    return folder


def test_the_same_run_goes_on_without_a_word(begun: RunFolder) -> None:
    again = config(f"out={begun.place}", "stop_after=3", "time_limit_seconds=60")
    same_run.check_folder(again, begun)
    assert same_run.told(again, begun) == []


def test_settings_that_changed_are_named(begun: RunFolder) -> None:
    changed = config(
        "optim.text.lr=0.25", "max_steps=77", "data.sources.a.path=/b", "data.sources.new.path=/c"
    )
    same_run.check_folder(changed, begun)
    [sentence] = same_run.told(changed, begun)
    before = config()
    assert (
        f"max_steps {before.max_steps} -> 77, optim.text.lr {before.optim.text.lr} -> 0.25"
        in sentence
    )
    assert "data.sources.a.path /a -> /b" in sentence
    assert "data.sources.new.path None -> /c" in sentence


@pytest.mark.parametrize("setting", ["seed=5", "optim.name=sgd", "lora.rank=2"])
def test_another_run_is_refused(begun: RunFolder, setting: str) -> None:
    with pytest.raises(ValueError, match=f"its {setting.partition('=')[0]} is .*overwrite=true"):
        same_run.check_folder(config(setting), begun)


def test_a_new_folder_has_nothing_to_tell(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "none"), None)
    same_run.check_folder(config(), folder)
    assert same_run.told(config(), folder) == []
