"""Answers by a server over HTTP: what is sent, and what becomes of every way to fail."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from chat_server import Answer, ChatServer, said, size_of
from eval_files import picture

from molmo_ds.config import PromptConfig
from molmo_ds.eval.benchmarks import BENCHMARKS
from molmo_ds.eval.clients.client import Ask, Reply
from molmo_ds.eval.clients.server_client import KEY, ServerClient, bare, family_of
from molmo_ds.eval.subject import Server
from molmo_ds.settings import to_dict


def asks(*questions: str) -> list[Ask]:
    return [
        Ask(
            id=question,
            pictures=(picture(50),),
            annotation={"style": "text_vqa", "question": question},
            seed=0,
            max_new_tokens=7,
        )
        for question in questions
    ]


def ask(server: ChatServer, *questions: str, **options: object) -> dict[str, Reply]:
    client = ServerClient(server.url, first_delay=0.001, **options)
    return {reply.id: reply for reply in client.replies(asks(*questions))}


def test_a_question_is_sent_as_training_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    with ChatServer(lambda text, times: said(" Red.")) as server:
        reply = ask(server, "Which colour?", max_crops=5)["Which colour?"]
    (body,) = server.bodies
    assert body["messages"][0]["content"][1] == {"type": "text", "text": "text_vqa: Which colour?"}
    assert size_of(body) == (40, 30)
    assert {name: body[name] for name in body if name != "messages"} == {
        "model": "made-up",
        "max_tokens": 7,
        "temperature": 0,
        "style": "verbatim",
        "max_crops": 5,
    }
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert reply == Reply(
        id="Which colour?",
        text="Red.",
        token_count=2,
        end="stop",
        prompt="IMAGE[1] text_vqa: Which colour?",
    )


def test_a_server_says_how_its_model_was_trained_to_be_asked() -> None:
    asked = PromptConfig(message_format="chat", system_prompt="demo_or_style_v2")
    assert bare(to_dict(asked), "molmo2") == replace(
        asked, message_format="none", always_start_with_space=False
    )
    # one that does not say it is asked as the released models of its name
    assert bare(None, "molmo2").prompt_templates == "uber_model_v2"
    assert bare(None, "molmo").prompt_templates == "uber_model"


@pytest.mark.parametrize(
    "served, family, told",
    [
        ({"id": "runs/export", "family": "molmo2"}, "molmo2", False),
        ({"id": "allenai/Molmo2-8B"}, "molmo2", True),
        ({"id": "molmo-7b-d"}, "molmo", True),
        ({"id": "allenai/Molmo2-8B", "family": "hemolmo"}, "hemolmo", False),
        ({"id": "molmo", "family": 5}, "molmo", True),
        ({"id": "molmo", "family": "llava"}, "molmo", True),
    ],
)
def test_the_family_is_what_the_server_says(
    served: dict, family: str, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert family_of(served) == family
    assert ("by its name it is asked" in caplog.text) == told


def test_answers_of_a_family_may_be_as_long_as_its_reference_lets_them(tmp_path: Path) -> None:
    task = BENCHMARKS["mmmu_test"]
    with ChatServer(lambda text, times: said("A")) as server:
        named = Server(server.url, tmp_path, family="molmo2")
        assert (named.family, task.new_tokens(named.family)) == ("molmo2", 64)
        assert named.asked.prompts.prompt_templates == "uber_model_v2"
        unnamed = Server(server.url, tmp_path)
    assert (unnamed.family, task.new_tokens(unnamed.family)) == ("molmo", 12)


def test_the_reason_of_the_end_is_kept() -> None:
    with ChatServer(lambda text, times: said("long", "length")) as server:
        assert ask(server, "?")["?"].end == "length"


def test_busy_and_broken_servers_are_asked_again() -> None:
    broken = [(429, {}), (503, b"no"), (200, b"<html>"), (500, {"error": {"message": "oh"}})]

    def answer(text: str, times: int) -> Answer:
        return broken[times - 1] if times <= len(broken) else said("fine")

    with ChatServer(answer) as server:
        assert ask(server, "?")["?"].text == "fine"
    assert len(server.bodies) == 5


@pytest.mark.parametrize(
    ("answer", "sentence", "attempts"),
    [
        (
            (500, {"error": {"message": "out of memory"}}),
            "8 attempts; the last: 500: out of memory",
            8,
        ),
        ((429, {}), "8 attempts; the last: 429", 8),
        ((200, b"{]"), "8 attempts; the last: its answer is no JSON", 8),
        ((400, {"error": {"message": "too many tokens"}}), "400: too many tokens", 1),
        ((200, {"choices": []}), "no choices", 1),
        ((200, {"choices": [{"message": None}]}), "no choices", 1),
        ((200, []), "no choices", 1),
        (said(None), "no text", 1),
        (said("", "content_filter"), "finish_reason 'content_filter'", 1),
        (said("half", "abort"), "finish_reason 'abort'", 1),
    ],
)
def test_what_fails_is_a_failure_and_no_reply(answer: Answer, sentence: str, attempts: int) -> None:
    with ChatServer(lambda text, times: answer if "bad" in text else said("good")) as server:
        replies = ask(server, "bad", "well", parallel=1)
    assert replies["bad"].failed and sentence in replies["bad"].end and replies["bad"].text == ""
    assert replies["well"].text == "good" and not replies["well"].failed
    assert server.times["text_vqa: bad"] == attempts


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_everything_ends_the_run(status: int) -> None:
    with (
        ChatServer(lambda text, times: (status, {"error": {"message": "no such key"}})) as server,
        pytest.raises(ValueError, match=f"refuses with {status}: no such key"),
    ):
        ask(server, "?")


def test_no_more_calls_at_once_than_asked_for() -> None:
    with ChatServer(lambda text, times: said("x")) as server:
        assert len(ask(server, *(str(number) for number in range(30)), parallel=3)) == 30
    assert 1 < server.most <= 3


def test_questions_are_taken_as_there_is_room() -> None:
    taken = []

    def endless():
        for number in range(1000):
            taken.append(number)
            yield from asks(str(number))

    with ChatServer(lambda text, times: said("x")) as server:
        replies = ServerClient(server.url, parallel=2).replies(endless())
        next(replies)
        replies.close()
    assert len(taken) <= 8


def test_a_picture_that_is_none_is_a_failure() -> None:
    broken = Ask(
        id="a", pictures=(b"no picture",), annotation={"question": "?"}, seed=0, max_new_tokens=1
    )
    with ChatServer(lambda text, times: said("x")) as server:
        (reply,) = ServerClient(server.url).replies([broken])
    assert reply.failed and not server.bodies


def test_a_server_that_is_slow_counts_as_failed() -> None:
    def late(text: str, times: int) -> Answer:
        time.sleep(0.5)  # much longer than a busy machine keeps the client from looking
        return said("x")

    with ChatServer(late) as server:
        client = ServerClient(server.url, model="made-up", first_delay=0.001, timeout=0.05)
        (reply,) = client.replies(asks("?"))
    assert reply.failed and "timed out" in reply.end
