"""What the protocol reads, and what it refuses: 4xx with a sentence, and nothing of it reaches an engine."""

import json
import random
import subprocess
import sys
from typing import Any

import pytest

from molmo_ds.serve import protocol
from molmo_ds.serve.media import decode
from molmo_ds.serve.protocol import Refused
from molmo_ds.testing.parrot import Parrot
from molmo_ds.testing.serving import Server, chat, data_url, post

USER = {"role": "user", "content": "Why?"}
SAID = {"role": "assistant", "content": "So."}
WRONG = [  # body, what the sentence names
    (b"", "JSON"),
    (b"{", "JSON"),
    (b"\xff\xfe", "JSON"),
    (b"[" * 9999, "JSON"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "JSON"),
    ([], "The body"),
    ({}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "Why?"}, "messages"),
    ({"messages": [None]}, "messages[0]"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        "messages[0].content[0]",
    ),
    ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0]"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0].image_url",
    ),
    ({"messages": [{"role": "user", "content": "  "}]}, "empty"),
    ({"messages": [SAID]}, "user"),
    ({"messages": [USER, SAID]}, "user"),
    ({"messages": [USER, USER]}, "messages[1]"),
    ({"messages": [USER, {"role": "assistant", "content": ""}, USER]}, "messages[1]"),
    ({"messages": [USER, {"role": "assistant", "content": None}, USER]}, "messages[1].content"),
    ({"messages": [{"role": "system", "content": "x"}]}, "user"),
    ({"messages": [USER, SAID, {"role": "system", "content": "x"}, SAID, USER]}, "messages[2]"),
    ({**chat("Why?"), "max_tokens": 0}, "max_tokens"),
    ({**chat("Why?"), "max_tokens": 2**40}, "max_tokens"),
    ({**chat("Why?"), "max_completion_tokens": "7"}, "max_completion_tokens"),
    ({**chat("Why?"), "temperature": -1}, "temperature"),
    (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temperature"),
    ({**chat("Why?"), "temperature": True}, "temperature"),
    ({**chat("Why?"), "top_p": 0}, "top_p"),
    ({**chat("Why?"), "top_p": 1.5}, "top_p"),
    ({**chat("Why?"), "top_k": -2}, "top_k"),
    ({**chat("Why?"), "stop": [""]}, "stop[0]"),
    ({**chat("Why?"), "stop": ["x"] * 17}, "stop"),
    ({**chat("Why?"), "seed": 2**63}, "seed"),
    ({**chat("Why?"), "seed": 1.5}, "seed"),
    ({**chat("Why?"), "n": 0}, "n"),
    ({**chat("Why?"), "n": 17}, "n"),
    ({**chat("Why?"), "stream": 1}, "stream"),
    ({**chat("Why?"), "logprobs": 5}, "logprobs"),
    ({**chat("Why?"), "top_logprobs": 2}, "logprobs"),
    ({**chat("Why?"), "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({**chat("Why?"), "style": "Style: "}, "style"),
    ({**chat("Why?"), "max_crops": 37}, "max_crops"),
    ({**chat("Why?"), "frequency_penalty": 0.5}, "frequency_penalty"),
    ({**chat("Why?"), "repetition_penalty": 1.1}, "repetition_penalty"),
    ({**chat("Why?"), "logit_bias": {"7": 100}}, "logit_bias"),
    ({**chat("Why?"), "response_format": {"type": "json_object"}}, "response_format"),
    ({**chat("Why?"), "tools": [{"type": "function"}]}, "tools"),
    ({**chat("Why?"), "guided_json": {"type": "object"}}, "guided_json"),
    ({**chat("Why?"), "skip_special_tokens": False}, "skip_special_tokens"),
    ({**chat("Why?"), "best_of": 3}, "best_of"),
    ({**chat("Why?"), "temprature": 1}, "the unknown key 'temprature'; write 'temperature'"),
    ({**chat("Why?"), "max_token": 5}, "the unknown key 'max_token'; write 'max_tokens'"),
    ({**chat("Why?"), "Temperature": 1}, "write 'temperature'"),
    ({**chat("Why?"), "stream_options": {"include_usage": True}}, "needs stream: true"),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "data:,", "detial": "low"}}
                    ],
                }
            ]
        },
        "'messages[0].content[0].image_url' has the unknown key 'detial'; write 'detail'",
    ),
]
PICTURES = [  # that are none
    "",
    "file:///etc/passwd",
    "http://127.0.0.1/a.png",
    "http://[::1",
    "data:text/html;base64,AAAA",
    "data:image/png,AAAA",
    "data:image/png;base64,!!!!",
    "data:image/png;base64,AAA",
    "data:image/png;base64,AAAA",
    data_url()[:82],  # cut short
    "ftp://a.org/a.png",
    "a.png",
]


@pytest.mark.parametrize(("body", "named"), WRONG)
def test_refused_in_a_sentence_that_names_the_key(body: Any, named: str) -> None:
    with pytest.raises(Refused) as refused:
        protocol.read(body if isinstance(body, bytes) else json.dumps(body).encode())
    sentence = str(refused.value)
    assert refused.value.status == 400 and named in sentence
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 300


def test_the_torch_free_part_stays_so() -> None:
    """The front answers at once: what it imports at the start knows no torch."""
    code = "import molmo_ds.serve.front, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_what_is_read() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": "data:,"},
        {"type": "text", "text": "b"},
    ]
    talk = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": parts},
        SAID,
        USER,
    ]
    body = {
        "messages": talk,
        "max_tokens": 3,
        "max_completion_tokens": 5,
        "top_k": -1,
        "seed": -4,
        "unknown": {},
        # what clients send though it changes nothing
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logit_bias": None,
        "tools": [],
        "response_format": {"type": "text"},
    }
    request = protocol.read(json.dumps(body).encode())
    assert request.turns == ["Be short.\na b", "So.", "Why?"]
    assert [picture.url for picture in request.pictures] == ["data:,"]
    options = request.options(9)
    assert (options.max_new_tokens, options.top_k, options.seed, options.temperature) == (
        5,
        0,
        -4,
        0.0,
    )
    assert protocol.read(json.dumps(chat("Why?", stop="x")).encode()).options(9).stop == ("x",)
    assert protocol.read(json.dumps(chat("Why?")).encode()).options(9).seed == 9


def test_keys_that_clients_send_are_ignored() -> None:
    """Those of OpenAI's chat completions and of vLLM that change no answer here."""
    sent = [
        "audio",
        "function_call",
        "max_prompt_tokens",
        "metadata",
        "model",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "tool_choice",
        "user",
        "verbosity",
        "web_search_options",
        "add_generation_prompt",
        "add_special_tokens",
        "documents",
        "chat_template_kwargs",
        "priority",
        "request_id",
        "return_tokens_as_token_ids",
        "cache_salt",
        "kv_transfer_params",
        "vllm_xargs",
        "return_token_ids",
        "truncate_prompt_tokens",
        "spaces_between_special_tokens",
        "include_reasoning",
        "logits_processors",
    ]
    for key in sent:
        protocol.read(json.dumps({**chat("Why?"), key: "x"}).encode())
    named = {"role": "user", "content": "Why?", "name": "me", "refusal": None, "annotations": []}
    protocol.read(json.dumps({"messages": [named]}).encode())


def test_pictures_of_data_urls() -> None:
    assert decode("data:image/png;base64,AAEC") == [b"\0\1\2"]
    assert decode("data:image/svg+xml;charset=utf-8;base64,AAEC") == [b"\0\1\2"]


def test_log_probabilities_are_json() -> None:
    one = protocol.logprob("é", float("-inf"), [("\ufffd", float("nan"))])
    assert one["bytes"] == [195, 169] and one["logprob"] == protocol.LEAST_LOG
    assert one["top_logprobs"] == [
        {"token": "\ufffd", "logprob": protocol.LEAST_LOG, "bytes": None}
    ]


def damaged(draw: random.Random) -> bytes | dict[str, Any]:
    """A request that must be refused."""
    kind = draw.randrange(4)
    if kind == 0:
        return draw.choice(WRONG)[0]
    if kind == 1:
        return chat("Why?", *[data_url()] * draw.randrange(2), draw.choice(PICTURES))
    if kind == 2:  # one key of a good request gets a value of no type that it may have
        keys = {
            "max_tokens": 3,
            "temperature": 0.5,
            "top_p": 0.5,
            "seed": 1,
            "n": 1,
            "stream": True,
            "logprobs": True,
        }
        body = chat("Why?", data_url(), **keys)
        name = draw.choice(list(keys))
        return {
            **body,
            name: draw.choice([[], {}, "", "x" * draw.randrange(1, 9), -1.5, [[0]], {"a": None}]),
        }
    text = json.dumps(chat("Why?")).encode()
    return text[: draw.randrange(1, len(text) - 1)]  # cut short


def test_malformed_requests_never_reach_the_engine(
    server: Server, parrot: Parrot, pytestconfig: pytest.Config
) -> None:
    """100 in the suite; 1,000 with --examples 20."""
    draw = random.Random(13)
    before = len(parrot.asked)
    for number in range(50 * pytestconfig.getoption("--examples")):
        body = damaged(draw)
        status, answer = post(
            server.url, body if isinstance(body, bytes) else json.dumps(body).encode()
        )
        sentence = answer["error"]["message"]
        assert 400 <= status < 500 and status != 429, (number, body, answer)
        assert sentence.endswith(".") and "\n" not in sentence and "Traceback" not in sentence, (
            number,
            sentence,
        )
    assert len(parrot.asked) == before
    assert post(server.url, chat("Why?"))[0] == 200
