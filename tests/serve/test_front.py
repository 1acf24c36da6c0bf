"""The front with a parrot behind it: it says the words of the prompt again, frame included."""

import asyncio
import json
import socket
import time
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from molmo_ds.serve.metrics import PREFIX
from molmo_ds.testing.parrot import Parrot
from molmo_ds.testing.serving import Server, chat, data_url, events, get, post

ECHO = "User: {} Assistant:"  # of a question, by the template of training


def text_of(answer: dict) -> str:
    (choice,) = answer["choices"]
    return choice["message"]["content"]


def test_an_answer(server: Server, parrot: Parrot) -> None:
    status, answer = post(server.url, chat("How many?", data_url(), model="any"))
    assert status == 200
    assert text_of(answer) == ECHO.format("How many?")
    assert (
        answer["object"] == "chat.completion"
        and answer["model"] == "molmo"
        and answer["id"].startswith("chatcmpl-")
    )
    assert answer["choices"][0]["finish_reason"] == "stop"
    asked = parrot.asked[-1]
    said = int((asked.prompt.branch_ids > 0).sum()) + 1  # the end token
    prompt = len(asked.prompt.input_ids)
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
    }
    assert len(asked.prompt.images) > 1  # a global view and tiles


@pytest.mark.parametrize(
    "keys", [{}, {"stop": "many"}, {"stop": ["nothing", "How", "ma"]}, {"max_tokens": 5}]
)
def test_a_stream_is_the_answer_in_pieces(server: Server, keys: dict) -> None:
    body = chat("How many naïve birds é?", **keys)
    _, whole = post(server.url, body)
    streamed = events(server.url, {**body, "stream_options": {"include_usage": True}})
    *chunks, counted = streamed
    assert {chunk["object"] for chunk in streamed} == {"chat.completion.chunk"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == text_of(whole) and len([piece for piece in pieces if piece]) > 2
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == whole["choices"][0][
        "finish_reason"
    ]
    assert counted["choices"] == [] and counted["usage"] == whole["usage"]
    assert all("usage" not in chunk for chunk in events(server.url, body))


def test_stop_strings_cut_and_the_engine_stops(server: Server, parrot: Parrot) -> None:
    _, answer = post(server.url, chat("one two three four five", stop=["two", "four"]))
    assert text_of(answer) == "User: one " and answer["choices"][0]["finish_reason"] == "stop"
    name = parrot.asked[-1].name
    deadline = time.monotonic() + 5
    while name not in parrot.dropped and time.monotonic() < deadline:
        time.sleep(0.01)
    assert name in parrot.dropped


def test_lengths(server: Server) -> None:
    for key in ("max_tokens", "max_completion_tokens"):
        _, answer = post(server.url, chat("How many birds?", **{key: 3}))
        assert (
            answer["usage"]["completion_tokens"] == 3
            and answer["choices"][0]["finish_reason"] == "length"
        )


def test_choices_and_seeds(server: Server, parrot: Parrot) -> None:
    body = chat("How many birds are there?", n=3, temperature=0.7, seed=5)
    _, first = post(server.url, body)
    _, again = post(server.url, body)
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3 and first["choices"] == again["choices"]
    # the parrot's way
    assert texts[1] == post(server.url, {**body, "seed": 6})[1]["choices"][0]["message"]["content"]
    three = parrot.asked[-6:-3]
    assert [question.draws for question in three] == ["0", "1", "2"]
    assert three[0].prompt is three[1].prompt  # one prefill for all
    streamed = events(server.url, body)
    for index, text in enumerate(texts):
        mine = [chunk["choices"][0] for chunk in streamed if chunk["choices"][0]["index"] == index]
        assert (
            "".join(one["delta"].get("content", "") for one in mine) == text
            and mine[-1]["finish_reason"] == "stop"
        )


def test_log_probabilities(server: Server, parrot: Parrot) -> None:
    body = chat("How many?", logprobs=True, top_logprobs=2)
    _, answer = post(server.url, body)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"] - 1  # none for the end token
    assert "".join(one["token"] for one in content).strip() == text_of(answer)
    assert all(one["logprob"] == -0.5 and len(one["top_logprobs"]) == 2 for one in content)
    assert content[0]["top_logprobs"][0]["token"] == content[0]["token"]
    assert bytes(content[0]["bytes"]).decode() == content[0]["token"]
    streamed = [chunk["choices"][0]["logprobs"] for chunk in events(server.url, body)]
    assert [one["content"][0] for one in streamed if one] == content
    _, answer = post(server.url, chat("How many?"))
    assert answer["choices"][0]["logprobs"] is None


def test_turns_are_one_prompt_by_the_template_of_training(server: Server) -> None:
    talk = [
        {"role": "system", "content": "Be short."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "How"}, {"type": "text", "text": "many?"}],
        },
        {"role": "assistant", "content": "Three."},
        {"role": "user", "content": "And birds?"},
    ]
    _, answer = post(server.url, {"messages": talk})
    # the parrot's end is the turn's
    assert text_of(answer).startswith("User: Be short.\nHow many? Assistant: Three.")
    talk[2]["content"] = ""
    assert post(server.url, {"messages": talk})[0] == 400


def test_styles(server: Server) -> None:
    for style, said in [
        ("vqa2", "vqa2: Why?"),
        ("verbatim", "Why?"),
        ("demo", "Why?"),
        (None, "Why?"),
    ]:
        assert text_of(post(server.url, chat("Why?", style=style))[1]) == ECHO.format(said)
    framed = chat(" User: ai2_diagram: Why? Assistant:", style="verbatim")
    assert text_of(post(server.url, framed)[1]) == ECHO.format("ai2_diagram: Why?")


def test_crops(server: Server, parrot: Parrot) -> None:
    def crops(detail: str | None = None, **keys: int) -> int:
        body = chat("Why?", data_url(200, 100), data_url(20, 20), **keys)
        body["messages"][0]["content"][0]["image_url"]["detail"] = detail
        assert post(server.url, body)[0] == 200
        return len(parrot.asked[-1].prompt.images)

    most = crops()
    assert crops("high") == crops("auto") == most
    assert most == 3 + 2  # a global view and tiles: 1 x 2 crops of 28 pixels, and 1 x 1
    assert crops("low") == 1 + 2
    assert crops(max_crops=1) == 2 + 2


def test_a_burst_over_the_queue(server: Server) -> None:
    async def ask(session: aiohttp.ClientSession) -> tuple[int, str | None]:
        async with session.post(
            f"{server.url}/v1/chat/completions", json=chat("birds " * 20)
        ) as response:
            await response.read()
            return response.status, response.headers.get("Retry-After")

    async def burst() -> list[tuple[int, str | None]]:
        async with aiohttp.ClientSession() as session:
            return await asyncio.gather(*(ask(session) for _ in range(14)))

    assert Counter(asyncio.run(burst())) == {(200, None): 8, (429, "1"): 6}
    assert post(server.url, chat("Why?"))[0] == 200  # and there is room again


def test_a_client_that_leaves_is_forgotten(server: Server, parrot: Parrot) -> None:
    before = len(parrot.asked)
    body = json.dumps(chat("birds " * 60)).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json"]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}"])
    host, port = server.settings.address.split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        deadline = time.monotonic() + 5
        while len(parrot.asked) == before and time.monotonic() < deadline:
            time.sleep(0.005)
    name = parrot.asked[-1].name
    while name not in parrot.dropped and time.monotonic() < deadline:
        time.sleep(0.005)
    assert name in parrot.dropped and not parrot.busy
    assert server.front.admitted == 0 and not server.front.dispatcher.open


def test_health_models_and_metrics(server: Server) -> None:
    assert json.loads(get(f"{server.url}/health")[1]) == {
        "engines": 1,
        "missing": 0,
        "admitted": 0,
        "unfinished": 0,
    }
    models = json.loads(get(f"{server.url}/v1/models")[1])
    assert [model["id"] for model in models["data"]] == ["molmo"] and models["object"] == "list"
    assert models["data"][0]["prompts"]["message_format"] == "role"
    assert models["data"][0]["family"] == "molmo"

    def metrics() -> dict[str, float]:
        lines = get(f"{server.url}/metrics")[1].decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name.removeprefix(PREFIX): float(value) for name, _, value in pairs}

    before = metrics()
    _, answer = post(server.url, chat("How many?"))
    post(server.url, b"{}")
    get(f"{server.url}/nothing")
    after = metrics()
    path = "/v1/chat/completions"
    grown = {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if value != before.get(name, 0)
    }
    made = answer["usage"]["completion_tokens"]
    assert grown[f'requests_total{{code="200",path="{path}"}}'] == 1
    assert grown[f'requests_total{{code="400",path="{path}"}}'] == 1
    assert grown['requests_total{code="404",path="other"}'] == 1
    assert grown["prompt_tokens_total"] == answer["usage"]["prompt_tokens"]
    assert grown["generated_tokens_total"] == made
    assert grown["first_token_seconds_count"] == 1 and grown["token_seconds_count"] == made - 1
    assert after["answers_running"] == after["answers_waiting"] == after["requests_admitted"] == 0
    assert after["engines_connected"] == 1


def test_an_api_key_limits_and_hosts(folder: Path) -> None:
    server = Server(
        folder, api_key="sesame", max_bytes=20_000, max_pixels=10_000, max_pictures=2, seconds=1.0
    )
    with server.front_in_a_thread():
        assert post(server.url, chat("Why?"))[0] == 401
        assert post(server.url, chat("Why?"), Authorization="Bearer Sesame")[0] == 401
        assert get(f"{server.url}/v1/models")[0] == 401
        key = {"Authorization": "Bearer sesame"}
        said = [
            post(server.url, chat("w" * 30_000), **key),
            post(server.url, chat("Why?", data_url(200, 100)), **key),
            post(server.url, chat("Why?", *[data_url()] * 3), **key),
            post(server.url, chat("Why?", "http://127.0.0.1:1/a.png"), **key),
            post(server.url, chat("why " * 900), **key),
            post(server.url, chat("Why?"), **{**key, "Content-Type": "text/plain"}),
            post(server.url, chat("Why?"), **key),
        ]
        assert [status for status, _ in said] == [413, 413, 400, 400, 400, 400, 503]
        words = [
            "20000 bytes",
            "20000 pixels",
            "3 pictures",
            "--allowed-media-domains",
            "tokens",
            "JSON",
            "engine",
        ]
        for (status, body), word in zip(said, words, strict=True):
            assert word in body["error"]["message"] and body["error"]["code"] == status, body
        assert get(f"{server.url}/health")[0] == 503
