"""Results of evaluations and replies of judges as nobody expects them: figures, or a sentence; never a traceback.

Few in every run of the suite; --examples 300 for 900 damaged folders.
"""

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from chat_server import ChatServer
from eval_files import make
from judge_stand_in import StandIn

from molmo_ds.cli import compare, evaluate, judge
from molmo_ds.eval.captions import judge as judging
from molmo_ds.eval.clients.client import Ask
from molmo_ds.eval.clients.server_client import ServerClient
from molmo_ds.eval.sets import resolve

NAME = "predictions-text_vqa-validation"
ODD = (None, [], {}, "", "x", -1, 0, 1e308, True, [None], [[]], {"a": None}, "\ud800", ["x"])
FILES = (
    "metrics.json",
    "rows.jsonl",
    "predictions.json",
    "log/rank-0.jsonl",
    "log/provenance.json",
    "mconsistency-recall-judge.json",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation, whose replies were judged as if they were captions."""
    whole = make(tmp_path_factory.mktemp("malformed"))
    evaluate.main(evaluating(whole, whole / "results"))
    references = [
        {
            "id": f"text_vqa:validation:{i}.{j}",
            "transcripts": ["I see it."],
            "statements": ["It is."] * 2,
        }
        for i in range(6)
        for j in range(3)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in references)
    (whole / "references.jsonl").write_text(lines)
    with StandIn() as stand_in:
        judge.main([*judged(whole, whole / "results"), "--judge-url", stand_in.url])
    return whole


def evaluating(folder: Path, out: Path, *more: str) -> list[str]:
    """The command line of the evaluation."""
    words = [str(folder / "model"), "text_vqa", "--data", str(folder / "data")]
    return [*words, "--save-dir", str(out), "--examples", "2", *more]


def judged(folder: Path, out: Path) -> list[str]:
    """The command line of the judging; without a URL the cache answers."""
    words = [str(out / NAME), "--references", str(folder / "references.jsonl")]
    return [*words, "--judge-model", "stand-in", "--partial"]


def damage(file: Path, draw: random.Random) -> None:
    """Cut, empty or change a file, or one value in its JSON."""
    content = file.read_bytes()
    kind = draw.randrange(8)
    if kind == 0:
        content = content[: draw.randrange(len(content))]
    elif kind == 1:
        at = draw.randrange(len(content))
        content = content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]
    elif kind == 2:
        content = draw.choice(
            [b"", b"null\n", b"[]\n", b"3\n", b'"x"\n', b"{}\n", b"\xff\n", b"[[\n"]
        )
    elif file.suffix == ".json":
        value = json.loads(content)
        changed(value, draw)
        content = json.dumps(value).encode()
    else:
        lines = content.splitlines()
        at = draw.randrange(len(lines))
        value = json.loads(lines[at])
        changed(value, draw)
        lines[at] = json.dumps(value).encode()
        content = b"\n".join(lines) + b"\n"
    file.write_bytes(content)


def changed(value: Any, draw: random.Random) -> None:
    """One value somewhere in JSON becomes another, or is gone."""
    while True:
        if not isinstance(value, dict | list) or not value:
            return
        key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if isinstance(value[key], dict | list) and value[key] and draw.random() < 0.7:
            value = value[key]
            continue
        if draw.random() < 0.3:
            del value[key]
        else:
            value[key] = copy.deepcopy(draw.choice(ODD))
        return


def answered(command: Callable[[], object]) -> str:
    """What a command says to the user, "" where it does its work."""
    try:
        command()
    except ValueError as error:
        assert type(error) is ValueError, repr(error)  # not one of json or of bytes
        sentence = str(error)
        assert sentence[-1:] in (".", "?") and "\n" not in sentence, sentence
        return sentence
    return ""


def test_damaged_results(
    folder: Path, tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture
) -> None:
    draw = random.Random(14)
    kept = folder / "results"
    refused = 0
    for number in range(3 * pytestconfig.getoption("--examples")):
        out = tmp_path / str(number)
        shutil.copytree(kept, out)
        name = FILES[number % len(FILES)]
        damage(out / NAME / name, draw)
        commands = {
            "again": lambda out=out: evaluate.main(evaluating(folder, out)),
            "rescore": lambda out=out: evaluate.main(evaluating(folder, out, "--rescore")),
            "beside": lambda out=out: evaluate.main(evaluating(folder, kept, "--beside", str(out))),
            "compare": lambda out=out: compare.main([str(kept), str(out)]),
            "judge": lambda out=out: judge.main(judged(folder, out)),
        }
        for what, command in commands.items():
            try:
                refused += bool(answered(command))
            except Exception as error:
                damaged = (out / NAME / name).read_bytes()[:3000]
                raise AssertionError(f"{number}: {what} after {name}: {damaged!r}") from error
        shutil.rmtree(out)
    capsys.readouterr()
    assert refused > 0


READ = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}
BODIES: tuple[object, ...] = (
    *(None, [], {}, "x", 3, {"choices": None}, {"choices": []}, {"choices": {}}, {"choices": "x"}),
    *({"choices": [odd]} for odd in (None, [], "x", 3)),
    *({"choices": [{"message": odd}]} for odd in (None, [], "x", 3, {})),
    *({"choices": [{"message": {"content": odd}}]} for odd in (None, [], {}, 3, True, [{}])),
    *({"choices": [{"message": {"content": "x"}, "finish_reason": odd}]} for odd in (3, [], {}, "x")),
    *({**READ, "usage": odd} for odd in ([1], "x", 3, {"total_tokens": "x", "completion_tokens": "x"})),
    *({"error": odd} for odd in (None, [], {}, {"message": None}, {"message": [3]}, "x")),
)  # fmt: skip


def test_odd_replies_of_a_judge(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a failure that is listed, or has its score where only what is not read is odd."""
    monkeypatch.setattr(judging, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(judging, "LOST_IN_A_ROW", 99)
    (tmp_path / "predictions.json").write_text(
        json.dumps([{"id": f"{i}", "prediction": f"{i}, there"} for i in range(len(BODIES) + 1)])
    )
    row = {"transcripts": ["I see it."], "statements": ["It is."] * 2}
    lines = [json.dumps({"id": f"{i}", **row}) for i in range(len(BODIES) + 1)]
    (tmp_path / "references.jsonl").write_text("\n".join(lines))

    def odd(call: str, text: str, times: int) -> object:
        number = int(text.split(",")[0]) if call == "recall" else len(BODIES)
        return web.json_response(BODIES[number]) if number < len(BODIES) else None

    with StandIn(odd) as stand_in:
        words = [str(tmp_path), "--references", str(tmp_path / "references.jsonl")]
        words += ["--judge-model", "stand-in", "--judge-url", stand_in.url, "--attempts", "1"]
        judge.main(words)
    found = json.loads((tmp_path / FILES[-1]).read_text())
    assert {row["picture"] for row in found["failures"]} == set(map(str, range(len(BODIES))))
    assert found["metrics"]["n_recall"] == 1 and found["metrics"]["recall"] == 50


def test_odd_answers_of_a_server() -> None:
    """A failure with a sentence, or the text; never an empty reply."""
    asked = [f"{number}" for number in range(len(BODIES))]

    def odd(text: str, times: int) -> tuple[int, object]:
        return 200, BODIES[int(text.split()[-1])]

    with ChatServer(odd) as server:
        client = ServerClient(server.url, 4, first_delay=0.001)
        asks = [
            Ask(id=name, pictures=(), annotation={"style": "demo", "question": name}, seed=0, max_new_tokens=3)
            for name in asked
        ]  # fmt: skip
        replies = {reply.id: reply for reply in client.replies(asks)}
    assert set(replies) == set(asked)
    read = [name for name, reply in replies.items() if not reply.failed]
    assert [replies[name].text for name in read] == ["x"] * 4
    assert all("the server" in reply.end for reply in replies.values() if reply.failed)


@pytest.mark.parametrize(
    "words",
    [["x"], [":"], ["text_vqa:x"], [","], ["text_vqa,x"], [""], ["TEXT_VQA"], ["text_vqa:validation:x"]],
)  # fmt: skip
def test_odd_tasks(words: list[str]) -> None:
    assert answered(lambda: resolve(words))
