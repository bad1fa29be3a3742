"""OpenAI's own Python library, unpatched, gets what it expects; and its usage is the ledger's entry, to the token."""

from typing import Any

import pytest
from openai import OpenAI

QUICK = "quick"
HELLO: list[Any] = [{"role": "user", "content": "Tell me of trees, é and 树."}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture
def client(platform: Any, customer: Any) -> OpenAI:
    made: OpenAI = platform.openai(customer)
    return made


def assert_charged(customer: Any, raw: Any, usage: Any) -> None:
    """The answer's usage, the entry that its headers name, and the customer's list of charges are one thing."""
    charge = customer.charge(raw.headers["x-request-id"])
    assert charge["entry_id"] == raw.headers["x-darktree-entry-id"]
    assert charge["prompt_tokens"] == usage.prompt_tokens > 0
    assert charge["completion_tokens"] == usage.completion_tokens > 0
    assert charge["total_tokens"] == usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert charge["amount_nanos"] == usage.total_tokens * 750_000
    listed = customer.platform.http.get("/v1/usage", headers=customer.headers).json()["data"]
    assert listed[0] | {"receipt": charge["receipt"]} == charge
    books = customer.books()
    assert (books.open_holds, books.held_tokens) == (0, 0)
    assert books.tokens == sum(entry["total_tokens"] for entry in listed)


def test_a_chat_is_answered_and_its_usage_is_the_ledgers_entry(client: OpenAI, customer: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(model=QUICK, messages=HELLO, max_tokens=20)
    answer = raw.parse()
    assert answer.object == "chat.completion"
    assert answer.model == QUICK
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20
    assert_charged(customer, raw, answer.usage)
    assert raw.headers["x-darktree-lane"] == QUICK
    assert raw.headers["x-ratelimit-limit-tokens"] == "10000000"
    assert int(raw.headers["x-ratelimit-remaining-tokens"]) == 10_000_000 - answer.usage.total_tokens
    assert raw.headers["x-ratelimit-reset-tokens"]
    assert answer._request_id == raw.headers["x-request-id"]


def test_a_completion_is_answered_and_its_usage_is_the_ledgers_entry(client: OpenAI, customer: Any) -> None:
    raw = client.completions.with_raw_response.create(model=QUICK, prompt="Once upon a time", max_tokens=9)
    answer = raw.parse()
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert_charged(customer, raw, answer.usage)


def test_a_stream_without_include_usage_tells_it_once_on_the_chunk_that_finishes(
    client: OpenAI, customer: Any
) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=QUICK, messages=HELLO, max_tokens=20, stream=True, seed=3
    )
    chunks = list(raw.parse())
    assert all(chunk.object == "chat.completion.chunk" and len(chunk.choices) == 1 for chunk in chunks)
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    plain = client.chat.completions.create(model=QUICK, messages=HELLO, max_tokens=20, seed=3)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain.choices[0].message.content
    )
    charge = customer.charge(raw.headers["x-request-id"])
    assert charge["entry_id"] == raw.headers["x-darktree-entry-id"]
    assert charge["total_tokens"] == getattr(chunks[-1].usage, "total_tokens", None)


def test_a_stream_with_include_usage_tells_it_on_a_last_chunk_without_choices(
    client: OpenAI, customer: Any
) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=QUICK, messages=HELLO, max_tokens=20, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = raw.parse()
    assert last.choices == []
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert_charged(customer, raw, last.usage)


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}], ids=["bare", "usage"])
def test_a_streamed_completion_is_the_same(client: OpenAI, customer: Any, options: Any) -> None:
    raw = client.completions.with_raw_response.create(
        model=QUICK, prompt="Once upon", max_tokens=12, stream=True, seed=1, **options
    )
    chunks = list(raw.parse())
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert bool(chunks[-1].choices) == (not options)
    plain = client.completions.create(model=QUICK, prompt="Once upon", max_tokens=12, seed=1)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == plain.choices[0].text
    assert customer.charge(raw.headers["x-request-id"])["total_tokens"] == chunks[-1].usage.total_tokens


def test_the_librarys_own_assembly_of_a_stream_does_not_trip(client: OpenAI) -> None:
    for options in ({}, {"stream_options": {"include_usage": True}}):
        chosen: Any = {
            "model": QUICK,
            "messages": HELLO,
            "max_tokens": 90,
            "n": 2,
            "logprobs": True,
        } | options
        with client.chat.completions.stream(**chosen) as stream:
            kinds = {event.type for event in stream}
            answer = stream.get_final_completion()
        assert {"chunk", "content.delta", "content.done"} <= kinds
        assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
        assert answer.usage is not None
        found = [choice.logprobs.content or [] for choice in answer.choices if choice.logprobs]
        assert answer.usage.completion_tokens == sum(map(len, found)) > 20


async def test_the_asynchronous_client_gets_the_same(platform: Any, customer: Any) -> None:
    async with platform.async_openai(customer) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model=QUICK, messages=HELLO, max_tokens=20
        )
        assert_charged(customer, raw, raw.parse().usage)
        bare = await client.chat.completions.create(model=QUICK, messages=HELLO, max_tokens=8, stream=True)
        usages = [chunk.usage async for chunk in bare]
        assert usages[-1].completion_tokens == 8
        assert usages[:-1] == [None] * (len(usages) - 1)
        full = await client.chat.completions.create(
            model=QUICK, messages=HELLO, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
        *chunks, last = [chunk async for chunk in full]
        assert (last.choices, last.usage.completion_tokens) == ([], 8)
        assert all(chunk.usage is None for chunk in chunks)
        assert (
            await client.completions.create(model=QUICK, prompt="a", max_tokens=3)
        ).usage.total_tokens == 4
        assert [model.id async for model in client.models.list()] == ["frail", "quick", "slow"]


def test_models_are_listed_and_retrieved(client: OpenAI, platform: Any) -> None:
    assert [model.id for model in client.models.list()] == ["frail", "quick", "slow"]
    model = client.models.retrieve(QUICK)
    assert (model.id, model.object, model.owned_by) == (QUICK, "model", "darktree")
    assert model.created > 1_700_000_000
    owner = platform.openai(platform.with_key("acme"))
    assert [model.id for model in owner.models.list()] == ["frail", "private", "quick", "slow"]
    assert owner.chat.completions.create(model="private", messages=HELLO, max_tokens=1).model == "private"


def test_tools_reach_the_model_and_are_part_of_the_prompt_that_is_charged(
    client: OpenAI, customer: Any
) -> None:
    bare = client.chat.completions.create(model=QUICK, messages=HELLO, max_tokens=1)
    raw = client.chat.completions.with_raw_response.create(
        model=QUICK, messages=HELLO, max_tokens=1, tools=[TOOL], tool_choice="none"
    )
    usage = raw.parse().usage
    assert bare.usage is not None
    assert usage is not None
    assert usage.prompt_tokens > bare.usage.prompt_tokens + len("weather")
    assert_charged(customer, raw, usage)


def test_an_answer_ends_before_a_stop_string(client: OpenAI, customer: Any) -> None:
    whole = client.chat.completions.create(model=QUICK, messages=HELLO, max_tokens=40, seed=5)
    text = whole.choices[0].message.content or ""
    stop = text[10:13]
    raw = client.chat.completions.with_raw_response.create(
        model=QUICK, messages=HELLO, max_tokens=40, seed=5, stop=[stop]
    )
    answer = raw.parse()
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == text[: text.index(stop)]
    assert_charged(customer, raw, answer.usage)


def test_two_answers_are_charged_with_one_prompt(client: OpenAI, customer: Any) -> None:
    one = client.chat.completions.create(model=QUICK, messages=HELLO, max_tokens=11)
    raw = client.chat.completions.with_raw_response.create(model=QUICK, messages=HELLO, max_tokens=11, n=2)
    answer = raw.parse()
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage is not None
    assert one.usage is not None
    assert answer.usage.prompt_tokens == one.usage.prompt_tokens
    assert answer.usage.completion_tokens == 22
    assert_charged(customer, raw, answer.usage)


def test_two_streamed_answers_come_apart_again_by_their_index(client: OpenAI, customer: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=QUICK, messages=HELLO, max_tokens=11, n=2, stream=True, seed=2
    )
    chunks = list(raw.parse())
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    plain = client.chat.completions.create(model=QUICK, messages=HELLO, max_tokens=11, n=2, seed=2)
    assert texts == [choice.message.content for choice in plain.choices]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert customer.charge(raw.headers["x-request-id"])["completion_tokens"] == 22


def test_log_probabilities_arrive_for_each_token(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=QUICK, messages=HELLO, max_tokens=6, logprobs=True, top_logprobs=2
    )
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.content is not None
    assert len(found.content) == 6
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in found.content)
    old = client.completions.create(model=QUICK, prompt="Once upon", max_tokens=6, logprobs=2)
    assert old.choices[0].logprobs is not None
    assert len(old.choices[0].logprobs.tokens or ()) == 6


def test_the_same_seed_gives_the_same_answer(client: OpenAI) -> None:
    def ask(seed: int) -> str | None:
        answer = client.chat.completions.create(model=QUICK, messages=HELLO, max_tokens=30, seed=seed)
        return answer.choices[0].message.content

    assert ask(7) == ask(7) != ask(8)


def test_max_completion_tokens_bounds_the_answer(client: OpenAI, customer: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=QUICK, messages=HELLO, max_completion_tokens=5
    )
    answer = raw.parse()
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.choices[0].finish_reason == "length"
    assert "x-darktree-max-tokens" not in raw.headers
    unbounded = client.chat.completions.with_raw_response.create(model=QUICK, messages=HELLO)
    assert unbounded.headers["x-darktree-max-tokens"] == "256"


def test_what_openais_clients_send_without_meaning_here_is_taken(client: OpenAI, customer: Any) -> None:
    answer = client.chat.completions.create(
        model=QUICK,
        messages=HELLO,
        max_tokens=1,
        user="somebody",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        temperature=0.2,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logit_bias={"5": 1},
        parallel_tool_calls=True,
        extra_headers={"X-Customer-Id": customer.id},
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1


def test_many_prompts_in_one_completion_are_each_answered_and_charged(client: OpenAI, customer: Any) -> None:
    prompts: list[Any] = [["one", "three"], [104, 105], [[104], [105, 106]]]
    for prompt, counted in zip(prompts, (8, 2, 3), strict=True):
        raw = client.completions.with_raw_response.create(model=QUICK, prompt=prompt, max_tokens=4, n=2)
        answer = raw.parse()
        answers = 2 if prompt == [104, 105] else 4
        assert [choice.index for choice in answer.choices] == list(range(answers))
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (counted, 4 * answers)
        assert_charged(customer, raw, answer.usage)


def test_a_customer_reads_charges_and_credits_with_the_same_client(client: OpenAI, customer: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(model=QUICK, messages=HELLO, max_tokens=2)
    page: Any = client.get("/usage", cast_to=object)
    assert [charge["request_id"] for charge in page["data"]] == [raw.headers["x-request-id"]]
    credit: Any = client.get("/credits", cast_to=object)
    assert credit["day"]["used_tokens"] == page["data"][0]["total_tokens"]
    assert credit["balance_nanos"] == 1_000 * 10**9 - page["data"][0]["amount_nanos"]
