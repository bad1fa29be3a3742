"""Whatever the simulator claims about vLLM is checked against vLLM.

Against its recorded answers everywhere, and against the real thing where `make vllm` has installed it.
"""

import copy
import importlib.util
import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

HERE = Path(__file__).parent
RECORDED = HERE / "recorded"
GROUPS = ("chat", "chat_streams", "completions", "completion_streams", "tokenize", "models", "errors")
STREAM_TOKENS = 600
READ_TOKENS = 30
# What vLLM words with the names of its own classes; status, type and code are still the same.
LOOSELY_WORDED = {"messages of a wrong type", "nested without end"}

Case = dict[str, Any]


def load_recorder() -> Any:
    # Tests are no package: a script beside them is loaded by its path.
    spec = importlib.util.spec_from_file_location("vllm_record", HERE / "record.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recorder = load_recorder()


CASES = [
    pytest.param(case, id=f"{group}-{case['name']}".replace(" ", "-"))
    for group in GROUPS
    for case in json.loads((RECORDED / f"{group}.json").read_text())
]


@pytest.fixture(scope="module")
def simulated(simulator: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=simulator.base_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def real(vllm_engine: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=vllm_engine.base_url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("case", CASES)
def test_the_simulator_answers_as_vllm_did_when_it_was_recorded(case: Case, simulated: httpx.Client) -> None:
    assert_same(case, recorder.normalised(recorder.put(simulated, case)), case, whole=True)


@pytest.mark.parametrize("case", CASES)
def test_the_simulator_answers_as_vllm_does(case: Case, simulated: httpx.Client, real: httpx.Client) -> None:
    truth = recorder.normalised(recorder.put(real, case))
    assert_same(truth, recorder.normalised(recorder.put(simulated, case)), case)


def test_the_recorded_questions_are_those_of_the_recorder() -> None:
    for group, asked in recorder.CASES.items():
        recorded = json.loads((RECORDED / f"{group}.json").read_text())
        answers = ("status", "answer_type", "answer", "events")
        questions = [{key: value for key, value in case.items() if key not in answers} for case in recorded]
        assert questions == json.loads(json.dumps(asked))


def test_every_metric_of_the_simulator_is_one_of_vllm(simulated: httpx.Client) -> None:
    recorded = set(json.loads((RECORDED / "metrics.json").read_text()))
    names = set(re.findall(r"^(vllm:\w+)\{", simulated.get("/metrics").text, re.MULTILINE))
    assert names <= recorded
    assert {"vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:num_requests_running"} <= names


def test_labels_of_the_counters_are_those_of_vllm(simulated: httpx.Client, real: httpx.Client) -> None:
    for client in (simulated, real):
        text = client.get("/metrics").text
        assert 'vllm:prompt_tokens_total{engine="0",model_name="tiny"}' in text
        assert 'vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"}' in text


@pytest.mark.parametrize("engine_fixture", ["simulator", "vllm_engine"])
def test_counters_grow_by_the_usage_of_each_answer(
    engine_fixture: str, request: pytest.FixtureRequest
) -> None:
    engine = request.getfixturevalue(engine_fixture)
    for n in (1, 3):
        before = engine.counters()
        usage = ask(engine, n=n, max_tokens=7)["usage"]
        after = engine.counters()
        assert usage["completion_tokens"] == 7 * n == after[1] - before[1]
        # The engine counts the prompt for each choice, the answer counts it once.
        assert usage["prompt_tokens"] * n == after[0] - before[0]


@pytest.mark.parametrize("engine_fixture", ["simulator", "vllm_engine"])
def test_a_client_that_goes_away_leaves_no_more_than_it_has_seen(
    engine_fixture: str, request: pytest.FixtureRequest
) -> None:
    engine = request.getfixturevalue(engine_fixture)
    if engine_fixture == "simulator":
        engine = request.getfixturevalue("paced_simulator")
    before = engine.counters()
    seen = leave_a_stream(engine, READ_TOKENS)
    after = engine.counters()
    assert after[0] - before[0] == seen["prompt_tokens"]
    assert after[1] - before[1] == seen["completion_tokens"] < STREAM_TOKENS


def ask(engine: Any, **fields: Any) -> Case:
    body = {"model": engine.model, "messages": [{"role": "user", "content": "hello"}], "ignore_eos": True}
    response = httpx.post(f"{engine.base_url}/v1/chat/completions", json=body | fields, timeout=60)
    answer: Case = response.json()
    return answer


def leave_a_stream(engine: Any, tokens: int) -> dict[str, int]:
    """Leave a long stream after so many tokens, while the engine says nothing; the usage in the last chunk of it."""
    engine.say_no_more_than(tokens)
    body = {"model": engine.model, "messages": [{"role": "user", "content": "hello"}], "ignore_eos": True}
    body |= {"max_tokens": STREAM_TOKENS, "stream": True}
    body |= {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    url = f"{engine.base_url}/v1/chat/completions"
    with httpx.Client(timeout=60) as client, client.stream("POST", url, json=body) as response:
        usages = (
            json.loads(line[6:])["usage"] for line in response.iter_lines() if line.startswith("data: ")
        )
        usage: dict[str, int] = next(usage for usage in usages if usage["completion_tokens"] >= tokens)
        with engine.silenced(), suppress(httpx.RemoteProtocolError):
            # What was on its way still comes, and then the answer breaks off.
            response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_WR)
            for later in usages:
                usage = later
    return usage


def assert_same(truth: Case, told: Case, case: Case, *, whole: bool = False) -> None:
    assert told["status"] == truth["status"]
    assert told["answer_type"] == truth["answer_type"]
    if "events" in truth:
        assert_same_stream(truth["events"], told["events"], whole)
    elif truth["status"] >= 400:
        assert_same_error(truth["answer"], told["answer"], case)
    elif case["path"] in {"/tokenize", "/detokenize"}:
        assert told["answer"] == truth["answer"]
    else:
        assert shape(told["answer"]) == shape(truth["answer"])
        assert told["answer"].get("usage") == truth["answer"].get("usage")


def assert_same_error(truth: Case, told: Case, case: Case) -> None:
    if case["name"] not in LOOSELY_WORDED:
        assert told == truth
    elif "error" in truth:
        for key in ("type", "code"):
            assert told["error"][key] == truth["error"][key]


def assert_same_stream(truth: list[str], told: list[str], whole: bool) -> None:
    """The same events but for their text.

    Each choice is compared on its own, and equal shapes in a row as one: when its reader is slow, vLLM interleaves
    choices otherwise and puts several tokens in a chunk, even a whole choice. A chunk of several tokens has the shape
    of its last one, so of fewer chunks it is asked that their shapes come in the simulator's order, to the same end
    (and one alone, which is the first and the last, has what both have); unless it is known that each token had its own
    (`whole`).
    """
    assert [event for event in told if not event.startswith("data: {")] == ["data: [DONE]", ""]
    ordered, expected = by_choice(told), by_choice(truth)
    assert ordered.keys() == expected.keys()
    for choice, events in expected.items():
        shown, true = shapes(ordered[choice]), shapes(events)
        if not whole and len(events) == 1 < len(ordered[choice]):
            merged = copy.deepcopy(ordered[choice][0])
            merged["choices"][0]["finish_reason"] = ordered[choice][-1]["choices"][0]["finish_reason"]
            assert true == shapes([merged])
        elif not whole and len(events) < len(ordered[choice]):
            assert shown[-1] == true[-1]
            assert is_subsequence(true, shown)
        else:
            assert shown == true
        assert ordered[choice][-1].get("usage") == events[-1].get("usage")
        for usage in (event["usage"] for event in ordered[choice] if "usage" in event):
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def shapes(values: list[Any], key: str = "") -> list[Any]:
    found: list[Any] = []
    for value in values:
        if shape(value, key) not in found[-1:]:
            found.append(shape(value, key))
    return found


def is_subsequence(part: list[Any], whole: list[Any]) -> bool:
    rest = iter(whole)
    return all(item in rest for item in part)


def by_choice(events: list[str]) -> dict[int | None, list[Case]]:
    found: dict[int | None, list[Case]] = {}
    for event in events:
        if event.startswith("data: {"):
            chunk = json.loads(event.removeprefix("data: "))
            index = chunk["choices"][0]["index"] if chunk["choices"] else None
            found.setdefault(index, []).append(chunk)
    return found


def shape(value: Any, key: str = "") -> Any:
    """The keys in their order, the types, and the values that do not depend on the text."""
    if key == "top_logprobs" and isinstance(value, dict):
        return "alternatives"
    if isinstance(value, dict):
        return [(name, shape(inner, name)) for name, inner in value.items()]
    if isinstance(value, list):
        return shapes(value, key)
    if key in {"finish_reason", "object", "role", "index", "model", "prompt_token_ids"} or value is None:
        return value
    return type(value).__name__
