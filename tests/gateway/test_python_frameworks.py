"""LangChain's and LlamaIndex' OpenAI classes, unpatched: what they understand is what was charged."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from darktree_simulator.app import make_app
from darktree_simulator.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
SCRIPTS = ROOT / "tests" / "clients"
SECONDS = 120
# Names that OpenAI's own models have: LlamaIndex' class takes no others.
MODEL, EMBEDDER = "gpt-4o-mini", "text-embedding-3-small"
DIMENSIONS = 16
PROMPT_TOKENS = 10
TEXT_USAGE = {"input_tokens": PROMPT_TOKENS, "output_tokens": 2}
CALL_USAGE = {"input_tokens": PROMPT_TOKENS, "output_tokens": 3}


@pytest.fixture(scope="module")
def models(platform: Any, obliging_engine: Any) -> dict[str, str]:
    """A model that does what it is asked, and one that embeds."""
    platform.serve_model(MODEL, obliging_engine())
    platform.serve_model(EMBEDDER, make_app(Settings(models=[EMBEDDER], embedding_dimensions=DIMENSIONS)))
    return {"MODEL": MODEL, "EMBEDDER": EMBEDDER}


@pytest.fixture(scope="module", params=["langchain_client", "llama_index_client"])
def drive(
    request: pytest.FixtureRequest, platform: Any, models: dict[str, str]
) -> tuple[Any, dict[str, Any]]:
    """The customer who was driven, and what the framework told."""
    if not PYTHON.exists():
        pytest.skip('LangChain and LlamaIndex are not here: run "make clients"')
    buyer = platform.customer()
    names = models | {
        "BASE_URL": f"{platform.gateway_url}/v1",
        "API_KEY": buyer.key,
        "POOR_KEY": platform.customer(dollars="0").key,
        "LANGSMITH_TRACING": "false",
    }
    ran = subprocess.run(
        [PYTHON, SCRIPTS / f"{request.param}.py"],
        env=os.environ | names,
        capture_output=True,
        timeout=SECONDS,
    )
    assert ran.returncode == 0, ran.stderr.decode()[-3000:]
    return buyer, json.loads(ran.stdout.splitlines()[-1])


@pytest.fixture
def told(drive: tuple[Any, dict[str, Any]]) -> dict[str, Any]:
    return drive[1]


def answers(told: dict[str, Any]) -> dict[str, Any]:
    ways = ("plain", "streamed", "repeated", "responses", "responses_streamed", "like", "like_streamed")
    shown = {way: told[way] for way in ways if way in told}
    return shown | {f"async {way}": answer for way, answer in told["async"].items()}


def test_every_way_of_asking_gives_the_answer_and_its_usage(told: dict[str, Any]) -> None:
    for way, answer in answers(told).items():
        if isinstance(answer, str):  # LlamaIndex shows no usage of a response
            assert answer == "Oslo", way
            continue
        assert answer["text"] == "Oslo", way
        usage = answer["usage"]
        assert usage is not None, way
        assert {name: usage[name] for name in TEXT_USAGE} == TEXT_USAGE, way


def test_an_answer_takes_the_form_that_was_asked_for(told: dict[str, Any]) -> None:
    forms = [told[name] for name in ("structured", "responses_structured") if name in told]
    assert forms == [{"city": "Oslo"}] * len(forms)


def test_a_tool_is_called_and_its_result_answered(told: dict[str, Any]) -> None:
    for name in ("tool", "responses_tool", "like_tool"):
        if name not in told:
            continue
        (call,) = told[name]["call"]["calls"]
        assert (call["name"], call["args"], call["id"]) == ("weather", {"city": "Oslo"}, "call_1")
        usage = told[name]["call"]["usage"]
        assert {each: usage[each] for each in CALL_USAGE} == CALL_USAGE
        assert told[name]["answer"]["text"] == "Oslo"


def test_embeddings_come_for_each_text(told: dict[str, Any]) -> None:
    assert told["vectors"] == [DIMENSIONS] * 2
    assert told.get("vectors_like", told["vectors"]) == told["vectors"]
    assert told["async_vector"] == DIMENSIONS


@pytest.mark.parametrize(
    ("case", "name", "status", "code"),
    [
        ("key", "AuthenticationError", 401, "invalid_api_key"),
        ("credit", "RateLimitError", 429, "credit_balance_exhausted"),
        ("model", "NotFoundError", 404, "model_not_found"),
    ],
)
def test_a_refusal_is_openais_own_error(
    told: dict[str, Any], case: str, name: str, status: int, code: str
) -> None:
    refusal = told["refusals"][case]
    assert (refusal["name"], refusal["status"], refusal["code"]) == (name, status, code)


def test_all_of_it_is_charged_once_and_nothing_is_left_held(
    platform: Any, drive: tuple[Any, dict[str, Any]], eventually: Any
) -> None:
    buyer, told = drive
    eventually(lambda: platform.open_holds(buyer.id) == 0, "no hold is left")
    charges = buyer.usage()
    assert {charge["outcome"] for charge in charges} == {"completed"}
    texts = sum("text" in answer or answer == "Oslo" for answer in answers(told).values())
    forms = sum(name in told for name in ("structured", "responses_structured"))
    tools = sum(name in told for name in ("tool", "responses_tool", "like_tool"))
    embedded = [charge["prompt_tokens"] for charge in charges if charge["model"] == EMBEDDER]
    generated = [charge["completion_tokens"] for charge in charges if charge["model"] == MODEL]
    assert sorted(generated) == [2] * (texts + forms + tools) + [3] * tools
    assert embedded == [3] * (2 + ("vectors_like" in told))
