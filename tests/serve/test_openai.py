"""OpenAI's own Python client against the server."""

import openai
import pytest

from molmo_ds.testing.serving import Server, chat, data_url


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_an_answer(client: openai.OpenAI) -> None:
    body = chat(
        "How many?", data_url(), n=2, seed=3, temperature=0.5, logprobs=True, top_logprobs=1
    )
    answer = client.chat.completions.create(
        model="molmo", extra_body={"style": "vqa2", "max_crops": 2}, **body
    )
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    assert len({choice.message.content for choice in answer.choices}) == 2
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    content = answer.choices[0].logprobs.content
    assert "".join(one.token for one in content).strip() == answer.choices[0].message.content


def test_a_stream(client: openai.OpenAI) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, counted = client.chat.completions.create(model="molmo", **chat("How many?"), **options)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        == "User: How many? Assistant:"
    )
    assert counted.usage.completion_tokens > 3


def test_models_and_errors(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["molmo"]
    with pytest.raises(openai.BadRequestError, match="The question is empty") as refused:
        client.chat.completions.create(model="molmo", **chat(""))
    assert refused.value.body["type"] == "invalid_request_error"
