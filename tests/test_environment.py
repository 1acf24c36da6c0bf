"""What is taken from environment variables, and what is said of it."""

import json
import os
import stat
from pathlib import Path

import pytest

from molmo_ds import environment, files
from molmo_ds.train import read_arguments


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No variable that is read here, and a temporary folder of the test's own."""
    names = [*environment.CREDENTIALS, *environment.CREDENTIALS.values(), "HF_TOKEN"]
    names += [name for pair in environment.S3_LIKE.values() for name in pair]
    for name in [*names, "HF_ACCESS_TOKEN", environment.ROOT, environment.MINUTES]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def test_credentials_become_private_files(empty: pytest.MonkeyPatch) -> None:
    key = json.dumps({"private_key": "secret"})
    empty.setenv("GOOGLE_APPLICATION_CREDENTIALS_JSON", key)
    empty.setenv("AWS_CREDENTIALS", "[weka]\naws_access_key_id = secret\n")
    empty.setenv("HF_ACCESS_TOKEN", "secret")
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "AWS_SHARED_CREDENTIALS_FILE", "HF_TOKEN"):
        empty.setenv(name, "")  # so that what is set is unset afterwards
    told = environment.prepare()
    assert len(told) == 3 and not any("secret" in sentence for sentence in told)
    for name, text in (
        ("GOOGLE_APPLICATION_CREDENTIALS", key),
        ("AWS_SHARED_CREDENTIALS_FILE", "[weka]\naws_access_key_id = secret\n"),
    ):
        path = Path(os.environ[name])
        assert path.read_text() == text
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.environ["HF_TOKEN"] == "secret"
    assert environment.prepare() == [], "a second call, as of another rank, finds all done"
    empty.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/own/key.json")
    assert "is not used" in environment.prepare()[0]
    assert os.environ["GOOGLE_APPLICATION_CREDENTIALS"] == "/own/key.json"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("GOOGLE_APPLICATION_CREDENTIALS_JSON", "/a/path", "is not JSON; give the whole text"),
        ("AWS_CREDENTIALS", "/a/path", "has no .profile.; give the whole text"),
    ],
)
def test_a_path_is_no_credentials(
    empty: pytest.MonkeyPatch, name: str, text: str, message: str
) -> None:
    empty.setenv(name, text)
    with pytest.raises(ValueError, match=message) as error:
        environment.prepare()
    assert text not in str(error.value)


def test_addresses_of_stores(empty: pytest.MonkeyPatch) -> None:
    assert environment.store_options("s3") == {}
    with pytest.raises(
        ValueError, match="weka:// needs the address of its server; set WEKA_ENDPOINT_URL"
    ):
        files.filesystem("weka://bucket/x")
    empty.setenv("WEKA_ENDPOINT_URL", "https://weka:9000")
    empty.setenv("WEKA_PROFILE", "WEKA")
    empty.setenv("S3_PROFILE", "S3")
    assert environment.store_options("weka") == {
        "endpoint_url": "https://weka:9000",
        "profile": "WEKA",
    }
    assert environment.store_options("s3") == {"profile": "S3"}
    weka = files.filesystem("weka://bucket/x")
    assert weka.client_kwargs == {} and weka.endpoint_url == "https://weka:9000"
    assert weka._strip_protocol("weka://bucket/x") == "bucket/x"


def test_minutes_where_no_seconds_are_given(empty: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty.setenv("NCCL_TIMEOUT_MINUTES", "30")
    assert read_arguments([]).timeout_seconds == 1800
    assert read_arguments(["timeout_seconds=5"]).timeout_seconds == 5
    (tmp_path / "run.yaml").write_text("timeout_seconds: 7\n")
    assert read_arguments(["run.yaml"]).timeout_seconds == 7
    (tmp_path / "other.yaml").write_text("seed: 7\n")
    assert read_arguments(["other.yaml", "--seed=8"]).timeout_seconds == 1800
    empty.setenv("NCCL_TIMEOUT_MINUTES", "soon")
    with pytest.raises(ValueError, match="NCCL_TIMEOUT_MINUTES=soon is no number of minutes"):
        read_arguments([])


def test_paths_below_the_root(
    empty: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    for folder in (root / "cap", root / "both", root / "weights", tmp_path / "both"):
        folder.mkdir(parents=True)
    (root / "many").mkdir()
    (root / "many" / "a.tar").touch()
    words = [
        "data.sources.one.path=cap",
        "data.sources.two.path=both",
        "data.sources.three.path=nowhere",
        "data.sources.four.path=many/*.tar",
        "data.sources.five.path=s3://bucket/cap",
        "init_from=weights",
    ]
    assert read_arguments(words).init_from == "weights", "no root"
    empty.setenv("MOLMO_DATA_DIR", str(root))
    with caplog.at_level("INFO", "molmo_ds"):
        made = read_arguments(words)
    paths = {name: source.path for name, source in made.data.sources.items()}
    assert paths == {
        "one": f"{root}/cap",
        "two": "both",
        "three": "nowhere",
        "four": f"{root}/many/*.tar",
        "five": "s3://bucket/cap",
    }
    assert made.init_from == f"{root}/weights"
    assert (
        f"data.sources.one.path=cap is not in the working folder: {root}/cap is taken"
        in caplog.text
    )
    empty.setenv("MOLMO_DATA_DIR", "gs://bucket/root/")
    assert read_arguments(words).init_from == "gs://bucket/root/weights"


RANKS = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RANK": "x"}, "RANK is 'x', but a launcher sets it to a whole number"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1'"),
        ({"MASTER_PORT": "\u0663"}, "MASTER_PORT is "),
        ({"LOCAL_WORLD_SIZE": "2.0"}, "LOCAL_WORLD_SIZE is '2.0'"),
        ({"WORLD_SIZE": None}, "RANK is set without WORLD_SIZE;"),
        ({"MASTER_ADDR": None, "MASTER_PORT": None}, "without MASTER_ADDR and MASTER_PORT;"),
        ({"RANK": "2"}, "RANK is 2, but with WORLD_SIZE=2 it must be below"),
    ],
)
def test_a_launchers_variables_that_are_not_whole(
    changes: dict[str, str | None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (RANKS | changes).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said):
        environment.rank()


def test_the_rank_of_a_launcher_or_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANKS, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert environment.rank() == 0
    for name, value in RANKS.items():
        monkeypatch.setenv(name, value)
    assert environment.rank() == 1
