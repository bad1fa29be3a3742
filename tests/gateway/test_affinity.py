"""A conversation returns to the engine that knows its beginning, and no engine gets more than its bounded share."""

import math
from collections import Counter
from contextlib import ExitStack
from typing import Any

import httpx
import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from darktree_gateway.affinity import conversation_of, number_of
from darktree_gateway.balancing import OVERLOAD_PERCENT, Balancer
from darktree_gateway.requests import read
from darktree_simulator.app import make_app as make_simulator_app
from darktree_simulator.settings import Settings as SimulatorSettings

MODEL = "qwen25-14b-awq"
URLS = [f"http://10.0.0.{place}:8000" for place in range(8)]
SYSTEM = {"role": "system", "content": "Be brief."}


def chat(*messages: Any) -> int:
    turns = [
        {"role": "user" if place % 2 == 0 else "assistant", "content": text}
        for place, text in enumerate(messages)
    ]
    return conversation_of(read(orjson.dumps({"model": MODEL, "messages": [SYSTEM, *turns]}), "chat"))


def complete(prompt: Any) -> int:
    return conversation_of(read(orjson.dumps({"model": MODEL, "prompt": prompt}), "completions"))


def test_every_turn_of_a_conversation_is_of_one_conversation_and_others_are_others() -> None:
    first = chat("Tell me of trees.")
    assert first == chat("Tell me of trees.", "They are green.", "And then?")
    assert len({first, chat("Tell me of seas."), complete("Tell me of trees.")}) == 3


def test_customers_with_caches_of_their_own_have_conversations_of_their_own() -> None:
    asks = [read(orjson.dumps({"model": MODEL, "prompt": "x"}), "completions") for _ in range(2)]
    asks[0].body["cache_salt"], asks[1].body["cache_salt"] = "a", "b"
    assert conversation_of(asks[0]) != conversation_of(asks[1])


@pytest.mark.parametrize("prompt", ["x", ["x", "y"], [1, 2], [[1], [2]], "é" * 5000, "\ud800"])
def test_every_kind_of_prompt_has_a_number_that_is_always_the_same(prompt: Any) -> None:
    if prompt == "\ud800":
        assert number_of(prompt) == number_of(prompt)
        return
    assert complete(prompt) == complete(prompt)


def test_parts_are_a_beginning_too() -> None:
    def parts(*texts: str) -> int:
        content = [{"type": "text", "text": text} for text in texts]
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
        return conversation_of(read(orjson.dumps(body), "chat"))

    assert parts("a", "b") == parts("a", "c") != parts("d")


def test_the_number_does_not_depend_on_the_process() -> None:
    assert number_of("http://a:1") == 7474447514010783343


def test_a_conversation_returns_to_its_engine_and_conversations_spread() -> None:
    balancer = Balancer()
    served: Counter[str] = Counter()
    for conversation in range(8_000):
        chosen = {
            engine.url for _ in range(3) if (engine := balancer.choose(URLS, conversation=conversation))
        }
        assert len(chosen) == 1
        served.update(chosen)
    assert set(served) == set(URLS)
    assert max(served.values()) < 1.2 * 8_000 / len(URLS)


def test_an_engine_that_goes_moves_only_its_own_conversations() -> None:
    balancer = Balancer()
    for conversation in range(1_000):
        before, after = (balancer.choose(urls, conversation=conversation) for urls in (URLS, URLS[:-1]))
        assert before is not None
        assert after is not None
        assert before is after or before.url == URLS[-1]


def test_an_engine_that_failed_is_passed_over_and_gets_its_conversations_back() -> None:
    balancer = Balancer()
    home = balancer.choose(URLS, conversation=7)
    assert home is not None
    balancer.eject(home, 0.0)
    elsewhere = balancer.choose(URLS, conversation=7)
    assert elsewhere is not home
    assert balancer.choose(URLS, conversation=7, but_not=home.url) is elsewhere
    balancer.answered(home)
    assert balancer.choose(URLS, conversation=7) is home
    for url in URLS:
        balancer.eject(balancer.engine(url), 100.0)
    assert balancer.choose(URLS, conversation=7) is not None


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=200), st.integers(2, 8))
def test_no_engine_gets_more_than_its_bounded_share(requests: list[tuple[int, bool]], engines: int) -> None:
    balancer = Balancer()
    urls = URLS[:engines]
    running = []
    for conversation, ends in requests:
        chosen = balancer.choose(urls, conversation=conversation)
        assert chosen is not None
        chosen.outstanding += 1
        running.append(chosen)
        assert chosen.outstanding <= math.ceil(OVERLOAD_PERCENT * len(running) / (100 * engines))
        if ends:
            running.pop(0).outstanding -= 1


def test_the_turns_of_a_conversation_reach_one_engine(
    platform: Any, customer: Any, eventually: Any, make_lane: Any
) -> None:
    with ExitStack() as stack:
        settings = SimulatorSettings(models=[MODEL])
        urls = [stack.enter_context(platform.serving(make_simulator_app(settings))) for _ in range(3)]
        platform.lanes_file.write_text(yaml.safe_dump(make_lane("three", MODEL, *urls)))
        eventually(lambda: customer.chat(max_tokens=1).headers.get("x-darktree-lane") == "three", "the lane")

        def prompts_at(url: str) -> float:
            text = httpx.get(f"{url}/metrics").text
            return sum(
                float(line.split()[-1])
                for line in text.splitlines()
                if line.startswith("vllm:prompt_tokens_total")
            )

        def engine_of(messages: list[dict[str, str]]) -> set[str]:
            before = {url: prompts_at(url) for url in urls}
            assert customer.client.post(
                "/v1/chat/completions", json={"model": MODEL, "messages": messages, "max_tokens": 2}
            ).is_success
            return {url for url in urls if prompts_at(url) > before[url]}

        homes = set()
        for talk in range(20):  # all at one engine by chance: once in a billion times
            messages = [{"role": "user", "content": f"Conversation {talk}"}]
            home = engine_of(messages)
            for _ in range(2 if talk < 6 else 0):
                messages += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And?"}]
                assert engine_of(messages) == home
            homes |= home
        assert len(homes) > 1
