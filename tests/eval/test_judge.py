"""Judged captions against a stand-in judge: figures, failures, the cache, back-off, bounds and kills."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from judge_stand_in import StandIn, completion, error

from molmo_ds.cli import judge as command
from molmo_ds.eval.captions import judge as judging

ROOT = Path(__file__).parents[2]
CAPTION = "a dog, a cat, a tree"  # three claims, of which the stand-in finds 1 and 3 consistent


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "FIRST_DELAY", 0.01)


def write(folder: Path, captions: list[str], statements: int = 4) -> list[str]:
    """Files of a run; the command line without the judge."""
    rows = [
        {"id": f"dense:{i}", "image_url": f"http://p/{i}.jpg", "prediction": text}
        for i, text in enumerate(captions)
    ]
    (folder / "predictions.json").write_text(json.dumps(rows))
    references = [
        {
            "image_url": row["image_url"],
            "transcripts": ["I see it."],
            "statements": ["It is."] * statements,
        }
        for row in rows
    ]
    (folder / "references.jsonl").write_text("".join(json.dumps(row) + "\n" for row in references))
    return [
        str(folder),
        "--references",
        str(folder / "references.jsonl"),
        "--judge-model",
        "stand-in",
    ]


def run(words: list[str], judge: StandIn | None, *more: str) -> dict[str, Any]:
    """Our results after the command."""
    command.main([*words, *(["--judge-url", judge.url] if judge else []), *more])
    return json.loads(next(Path(words[0]).glob("*judge.json")).read_text())


def test_figures_and_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = write(tmp_path, [CAPTION, "a dog, a cat", ""])
    with StandIn() as judge:
        found = run(words, judge, "--repetition")
    # recall 2/4, 2/4 and 0 of 4; consistency 2/3 and 1/2, and an empty caption claims nothing
    wanted = {
        "recall": 100 / 3,
        "recall_at_10": 100 / 3,
        "consistency": 100 * 7 / 12,
        "num_statements": 2.5,
        "is_repeating": 0.0,
        "cap_f1": 2 * (100 / 3) * (700 / 12) / (100 / 3 + 700 / 12),
        "arithmetic_mean": (100 / 3 + 700 / 12) / 2,
        "recall_error": 100 / 6,  # deviations 1/6, 1/6 and -1/3: sqrt((1/36 + 1/36 + 4/36) / 2 / 3)
        "consistency_error": 100 / 12,  # +- 1/12: sqrt(2/144 / 1 / 2)
        "n_recall": 3,
        "n_consistency": 2,
        "n_repeating": 3,
    }
    assert found["metrics"] == pytest.approx(wanted, rel=1e-12)
    assert found["by_line"] == found["metrics"]
    assert judge.calls == {"recall": 2, "claims": 2, "consistency": 2, "repetition": 2}
    assert judge.temperatures == {"recall": 0, "claims": 0, "consistency": 0, "repetition": None}
    assert found["counts"]["empty_captions"] == 1 and found["failures"] == []
    theirs = json.loads((tmp_path / "results_v3.json").read_text())
    assert theirs == {name: found["by_line"][name] for name in theirs} and len(theirs) == 5
    rows = json.loads((tmp_path / "all-results-v3.json").read_text())["results"]
    assert rows["http://p/0.jpg"]["recall"]["statement_scores"] == [True, False, True, False]
    said = capsys.readouterr().out
    assert "cap_f1" in said and "empty captions: 1" in said


def test_recall_at_10_and_the_name_of_a_sample(tmp_path: Path) -> None:
    words = write(tmp_path, [CAPTION] * 3, statements=24)
    with StandIn() as judge:
        found = run(words, judge, "--sample", "2")
    assert found["metrics"]["recall_at_10"] == 100 and found["metrics"]["recall"] == 50
    assert len(found["pictures"]) == 2 and judge.calls == {
        "recall": 2,
        "claims": 2,
        "consistency": 2,
    }
    names = sorted(path.name for path in tmp_path.glob("s2*"))
    begin = "s2-mconsistency-recall-"
    assert names == sorted(
        f"{begin}{name}.json" for name in ("judge", "results_v3", "all-results-v3")
    )


BROKEN: dict[str, Callable[[], object]] = {
    "refuses in words": lambda: "I cannot do that.",
    "too few": lambda: "1. Stated\n2. Stated\n3. Stated",
    "too many": lambda: "1. Stated\n2. Stated\n3. Stated\n4. Stated\n5. Stated",
    "twice": lambda: "1. Stated\n1. Stated\n2. Stated\n3. Stated\n4. Stated",
    "both words": lambda: "1. Stated\n2. Stated / Not Stated\n3. Stated\n4. Stated",
    "refuses": lambda: completion(None, refusal="no"),
    "filtered": lambda: completion("1. Stated", "content_filter"),
    "cut": lambda: completion("1. Stated", "length"),
    "bad request": lambda: error(400, "content policy"),
    "always busy": lambda: error(503),
    "not JSON": lambda: web.Response(text="<html>"),
}


def test_what_cannot_be_read_is_listed_and_never_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = write(tmp_path, [CAPTION, *(f"{name}, there" for name in BROKEN)])

    def behaviour(call: str, text: str, times: int) -> object:
        name = text.removesuffix(", there")
        return BROKEN[name]() if call == "recall" and name in BROKEN else None

    with StandIn(behaviour) as judge:
        found = run(words, judge, "--attempts", "2")
    listed = {row["picture"]: row["kind"] for row in found["failures"]}
    kinds = ["unreadable"] * 5 + ["refused"] * 2 + ["too long", "refused"] + ["no reply"] * 2
    assert listed == {f"http://p/{i}.jpg": kind for i, kind in enumerate(kinds, 1)}
    assert found["counts"]["captions_with_a_failure"] == len(BROKEN)
    assert found["counts"]["recall: unreadable"] == 5 and found["counts"]["recall: no reply"] == 2
    assert found["metrics"]["recall"] == 50 and found["metrics"]["n_recall"] == 1
    assert found["metrics"]["n_consistency"] == 1 + len(BROKEN)
    # the reference scores what lines it has: 2/4, 3/3, 5/5, 5/5, 3/4 (a line with both words ends in `Not Stated`)
    assert found["by_line"]["n_recall"] == 5
    assert found["by_line"]["recall"] == pytest.approx(100 * (0.5 + 1 + 1 + 1 + 0.75) / 5)
    assert capsys.readouterr().err.count("failed: ") == 5


def test_a_restart_repeats_no_call_and_again_repeats_those_without_use(tmp_path: Path) -> None:
    words = write(tmp_path, [CAPTION, "a cow, a hen"])

    def grumpy(call: str, text: str, times: int) -> str | None:
        return "Hm." if call == "recall" and text == CAPTION and times == 1 else None

    with StandIn(grumpy) as judge:
        first = run(words, judge)
        assert sum(judge.asked.values()) == 6 and first["metrics"]["n_recall"] == 1
        same = run(words, judge)
        assert sum(judge.asked.values()) == 6 and same["metrics"] == first["metrics"]
        better = run(words, judge, "--again")
        assert sum(judge.asked.values()) == 7 and better["metrics"]["n_recall"] == 2
    offline = run(words, None, "--judge-key-env", "NOT_SET")
    assert offline["metrics"] == better["metrics"], (
        "all is in the cache: no URL and no key is needed"
    )


def test_back_off(tmp_path: Path) -> None:
    """429 and 5xx are tried again, Retry-After is waited for by every call."""
    words = write(tmp_path, [f"{i}, there" for i in range(4)])

    def behaviour(call: str, text: str, times: int) -> object:
        first = {"0, there": error(429, Retry_After="1"), "1, there": error(500)}
        return first.get(text) if call == "recall" and times == 1 else None

    with StandIn(behaviour) as judge:
        found = run(words, judge, "--parallel", "1")
    assert found["failures"] == [] and found["metrics"]["recall"] == 50
    assert judge.calls == {"recall": 4 + 2, "claims": 4, "consistency": 4}
    assert judge.times[1] - judge.times[0] >= 0.99


def test_a_reply_that_does_not_come_is_given_up_and_asked_for_again(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Nothing else is asked with the short time-out, so that a busy machine changes nothing."""
    words = write(tmp_path, [CAPTION, "a cow, a hen"])
    never = 3600.0
    said: list[object] = [error(503)]

    def behaviour(call: str, text: str, times: int) -> object:
        return said.pop(0) if call == "recall" and text == CAPTION and said else None

    with StandIn(behaviour) as judge:
        run(words, judge, "--attempts", "1")  # all other replies are in the cache now
        said.append(never)
        found = run(words, judge, "--attempts", "1", "--timeout", "0.2")
        assert [row["kind"] for row in found["failures"]] == ["no reply"]
        assert "there was no reply within 0.2 s" in capsys.readouterr().err
        said.extend([never, never])
        better = run(words, judge, "--attempts", "50", "--timeout", "0.2")
    assert better["failures"] == [] and better["metrics"]["n_recall"] == 2
    assert not said and judge.calls["recall"] >= 2 + 1 + 3


def test_retry_after() -> None:
    assert judging._seconds("7") == 7 and judging._seconds("") == judging._seconds("soon") == 0
    assert judging._seconds("Mon, 01 Jan 2001 00:00:00 GMT") == 0
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 90 < judging._seconds(later) <= 100


@pytest.mark.parametrize("parallel", [1, 3])
def test_calls_at_a_time(tmp_path: Path, parallel: int) -> None:
    words = write(tmp_path, [f"{i}, there" for i in range(8)])
    with StandIn(seconds=0.02) as judge:
        run(words, judge, "--parallel", str(parallel))
    assert judge.most == parallel and sum(judge.calls.values()) == 24


def test_the_key_is_asked_for_late_and_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = write(tmp_path, [CAPTION])
    with StandIn() as judge:
        with pytest.raises(
            ValueError, match=r"variable MY_KEY is empty; put the judge's key there\.$"
        ):
            run(words, judge, "--judge-key-env", "MY_KEY")
        assert not judge.asked
        monkeypatch.setenv("MY_KEY", "secret")
        run(words, judge, "--judge-key-env", "MY_KEY")
        assert judge.keys == {"Bearer secret"}
    assert not any("secret" in path.read_text() for path in tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (
            lambda *_: error(401, "wrong key"),
            r"refuses the key; name .* \(status 401: wrong key\)\.$",
        ),
        (lambda *_: error(404, "no model"), r"no such address or model"),
        (
            lambda *_: error(429, "no money left"),
            r"20 calls in a row without a reply.*no money left",
        ),
    ],
)
def test_what_ends_a_run(tmp_path: Path, behaviour: Callable, said: str) -> None:
    words = write(tmp_path, [f"{i}, there" for i in range(100)])
    with StandIn(behaviour) as judge, pytest.raises(ValueError, match=said):
        run(words, judge, "--attempts", "2", "--parallel", "4")
    assert sum(judge.asked.values()) < 60 and not list(tmp_path.glob("*judge.json"))


def test_without_a_judge(tmp_path: Path) -> None:
    words = write(tmp_path, [CAPTION])
    with pytest.raises(
        ValueError,
        match=r"2 replies are not in .*judge-cache, the first is recall of http://p/0\.jpg",
    ):
        run(words, None)
    with (
        StandIn(lambda *_: "Hm.") as judge,
        pytest.raises(ValueError, match="None of 1 captions could be judged"),
    ):
        run(words, judge)


def test_other_figures_are_not_overwritten(tmp_path: Path) -> None:
    words = write(tmp_path, [CAPTION])
    with StandIn() as judge:
        run(words, judge)
        (tmp_path / "references.jsonl").write_text(
            (tmp_path / "references.jsonl").read_text().replace("I see", "We see")
        )
        with pytest.raises(
            ValueError, match=r"holds other figures \(inputs_sha256 was .*--overwrite"
        ):
            run(words, judge)
        run(words, judge, "--overwrite")
    next(tmp_path.glob("*judge.json")).unlink()
    with StandIn() as judge, pytest.raises(ValueError, match="written by another program"):
        run(words, judge)


def test_a_killed_run_goes_on_without_a_repeated_call(tmp_path: Path) -> None:
    words = write(tmp_path, [f"{i}, there" for i in range(30)])
    with StandIn(seconds=0.03) as judge:
        line = [
            sys.executable,
            str(ROOT / "tools/judge.py"),
            *words,
            "--judge-url",
            judge.url,
            "--parallel",
            "2",
        ]
        child = subprocess.Popen(
            line, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while len(judge.asked) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        before = sum(judge.asked.values())
        assert 20 <= before < 80
        found = run(words, judge)
    assert found["failures"] == [] and len(judge.asked) == 90
    repeated = [text for text, times in judge.asked.items() if times > 1]
    assert len(repeated) <= 2, "only what was in flight at the kill"
