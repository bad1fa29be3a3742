"""OpenAI's library for Python, unpatched, where an engine has to oblige: forms, tools, responses, repeats, patience.

What it does against engines that only talk is in `tests/conformance/test_openai_client.py`.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from openai import APITimeoutError, AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

from darktree_simulator.app import make_app
from darktree_simulator.settings import Settings

MODEL, EMBEDDER = "obliging", "embedder"
DIMENSIONS = 4
QUESTION: list[Any] = [{"role": "user", "content": "Which city?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
FLAT_TOOL: Any = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}


class Place(BaseModel):
    city: str


@pytest.fixture(scope="module", autouse=True)
def models(platform: Any, obliging_engine: Any) -> None:
    platform.serve_model(MODEL, obliging_engine())
    platform.serve_model(EMBEDDER, make_app(Settings(models=[EMBEDDER], embedding_dimensions=DIMENSIONS)))


@pytest.fixture
def client(platform: Any, customer: Any) -> Iterator[OpenAI]:
    with OpenAI(api_key=customer.key, base_url=f"{platform.gateway_url}/v1") as made:
        yield made


@pytest.fixture
def async_client(platform: Any, customer: Any) -> AsyncOpenAI:
    return AsyncOpenAI(api_key=customer.key, base_url=f"{platform.gateway_url}/v1")


def total(customer: Any) -> int:
    return sum(charge["total_tokens"] for charge in customer.usage())


def test_a_chat_is_parsed_into_its_form(client: OpenAI, customer: Any) -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Place)
    assert answer.choices[0].message.parsed == Place(city="Oslo")
    assert answer.usage is not None
    assert answer.usage.total_tokens == total(customer)


def test_a_streamed_chat_is_parsed_into_its_form(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, response_format=Place) as stream:
        kinds = {event.type for event in stream}
        answer: Any = stream.get_final_completion()
    assert answer.choices[0].message.parsed == Place(city="Oslo")
    assert {"chunk", "content.delta", "content.done"} <= kinds


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_answered(client: OpenAI, customer: Any, stream: bool) -> None:
    asked = list(QUESTION)
    if stream:
        with client.chat.completions.stream(model=MODEL, messages=asked, tools=[TOOL]) as told:
            said: Any = told.get_final_completion().choices[0]
    else:
        said = client.chat.completions.create(model=MODEL, messages=asked, tools=[TOOL]).choices[0]
    assert said.finish_reason == "tool_calls"
    (call,) = said.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
        "function",
        "weather",
        {"city": "Oslo"},
    )
    asked += [said.message, {"role": "tool", "tool_call_id": call.id, "content": "Dry."}]
    answer = client.chat.completions.create(model=MODEL, messages=asked, tools=[TOOL])
    assert answer.choices[0].message.content == "Oslo"
    assert [charge["completion_tokens"] for charge in customer.usage()] == [2, 3]


def test_a_response_is_understood_raw_parsed_and_streamed(client: OpenAI, customer: Any) -> None:
    raw = client.responses.with_raw_response.create(model=MODEL, input="Which city?")
    response = raw.parse()
    assert response.output_text == "Oslo"
    assert raw.headers["x-darktree-entry-id"] == customer.usage()[0]["entry_id"]
    assert response._request_id == customer.usage()[0]["request_id"]
    assert response.usage is not None
    assert response.usage.total_tokens == customer.usage()[0]["total_tokens"]
    parsed = client.responses.parse(model=MODEL, input="Which city?", text_format=Place)
    assert parsed.output_parsed == Place(city="Oslo")
    texts = [
        event.delta
        for event in client.responses.create(model=MODEL, input="Which city?", stream=True)
        if event.type == "response.output_text.delta"
    ]
    assert texts == ["Os", "lo"]


def test_a_response_calls_a_function_and_goes_on_with_its_own_items(client: OpenAI) -> None:
    asked: list[Any] = [{"role": "user", "content": "Which city?"}]
    first = client.responses.create(model=MODEL, input=asked, tools=[FLAT_TOOL])
    (call,) = first.output
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Oslo"}
    asked += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": "Dry."}]
    second = client.responses.create(model=MODEL, input=asked, tools=[FLAT_TOOL])
    assert second.output_text == "Oslo"
    asked += [*second.output, {"role": "user", "content": "Again?"}]
    assert client.responses.create(model=MODEL, input=asked).output_text == "Oslo"


async def test_the_asynchronous_client_does_the_same(async_client: AsyncOpenAI, customer: Any) -> None:
    async with async_client as client:
        parsed = await client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Place)
        assert parsed.choices[0].message.parsed == Place(city="Oslo")
        async with client.responses.stream(model=MODEL, input="Which city?") as stream:
            kinds = [event.type async for event in stream]
            response = await stream.get_final_response()
        assert response.output_text == "Oslo"
        assert kinds[-1] == "response.completed"
        vectors = await client.embeddings.create(model=EMBEDDER, input=["a", "bc"])
        assert [len(row.embedding) for row in vectors.data] == [DIMENSIONS] * 2
        assert vectors.usage.total_tokens == 3 == customer.usage()[0]["total_tokens"]


def test_embeddings_come_in_decimals_and_packed(client: OpenAI, customer: Any) -> None:
    packed = client.embeddings.create(model=EMBEDDER, input="hello")  # the library asks for base64 by itself
    plain = client.embeddings.create(model=EMBEDDER, input="hello", encoding_format="float")
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, rel=1e-6)
    assert [charge["total_tokens"] for charge in customer.usage()] == [5, 5]


def test_a_failure_is_repeated_by_the_library_and_charged_once(client: OpenAI, customer: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "user", "content": f"fail once, {customer.id}"}]
    )
    assert raw.retries_taken == 1
    assert [charge["outcome"] for charge in customer.usage()] == ["completed"]


def test_a_request_that_is_given_up_holds_and_costs_nothing(
    platform: Any, client: OpenAI, customer: Any, eventually: Any
) -> None:
    started = time.monotonic()
    with pytest.raises(APITimeoutError):
        client.with_options(timeout=0.3, max_retries=1).chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "wait"}]
        )
    assert time.monotonic() - started < 8
    eventually(lambda: platform.open_holds(customer.id) == 0, "no hold is left")
    assert customer.usage() == []


def test_what_would_have_to_be_stored_is_the_librarys_own_error(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="Nothing is stored here"):
        client.responses.create(model=MODEL, input="x", previous_response_id="resp_1")
    with pytest.raises(BadRequestError, match="'store'"):
        client.responses.create(model=MODEL, input="x", store=True)
    with pytest.raises(NotFoundError):
        client.responses.retrieve("resp_1")
    with pytest.raises(NotFoundError, match="either generates or embeds"):
        client.embeddings.create(model=MODEL, input="x")
