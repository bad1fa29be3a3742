"""OpenAI's current library for Node, unpatched, against the gateway: what it understands is what was charged."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from darktree_simulator.app import make_app
from darktree_simulator.settings import Settings

CLIENTS = Path(__file__).resolve().parents[1] / "clients"
MODEL = "qwen25-14b-awq"
OBLIGING, EMBEDDER = "obliging", "embedder"
DIMENSIONS = 4
NODE_SECONDS = 60
PROMPT = "Tell me of trees."


@pytest.fixture(scope="module")
def buyer(platform: Any) -> Any:
    return platform.customer()


@pytest.fixture(scope="module")
def told(platform: Any, buyer: Any, obliging_engine: Any) -> dict[str, Any]:
    node = shutil.which("node")
    if node is None or not (CLIENTS / "node_modules" / "openai").exists():
        pytest.skip('OpenAI\'s library for Node is not here: run "make clients"')
    poor = platform.customer(dollars="0")
    platform.serve_model(OBLIGING, obliging_engine())
    platform.serve_model(EMBEDDER, make_app(Settings(models=[EMBEDDER], embedding_dimensions=DIMENSIONS)))
    names = {
        "BASE_URL": f"{platform.gateway_url}/v1",
        "API_KEY": buyer.key,
        "POOR_KEY": poor.key,
        "MODEL": MODEL,
        "OBLIGING": OBLIGING,
        "EMBEDDER": EMBEDDER,
    }
    ran = subprocess.run(
        [node, CLIENTS / "openai.mjs"], env=os.environ | names, capture_output=True, timeout=NODE_SECONDS
    )
    assert ran.returncode == 0, ran.stderr.decode()
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_every_answer_of_the_library_has_its_usage_once(told: dict[str, Any]) -> None:
    usage = told["plain"]["usage"]
    assert (usage["completion_tokens"], len(told["plain"]["text"]) > 0) == (8, True)
    assert told["plain"]["id"].startswith("req_")
    for way in ("streamed", "streamed_with_usage"):
        assert told[way]["finish"] == ["length"]
        assert [found["total_tokens"] for found in told[way]["usages"]] == [usage["total_tokens"]]
        assert told[way]["text"] == told["plain"]["text"]
    assert told["raw"]["usage"]["total_tokens"] == usage["total_tokens"]
    assert told["assembled"]["usage"]["total_tokens"] == usage["total_tokens"]
    assert told["completion"]["completion_tokens"] == 5
    assert [found["completion_tokens"] for found in told["completion_streamed"]["usages"]] == [5]


def test_answers_log_probabilities_models_and_counts_are_understood(told: dict[str, Any]) -> None:
    assert told["two"] == [0, 1]
    assert told["logprobs"] == 8
    assert MODEL in told["models"]
    assert told["model"] == MODEL
    assert told["count"] == told["plain"]["usage"]["prompt_tokens"]


def test_forms_are_parsed_and_tools_are_run(told: dict[str, Any]) -> None:
    assert told["parsed"] == told["response_parsed"] == {"city": "Oslo"}
    assert told["tools"] == {"ran": [{"city": "Oslo"}], "text": "Oslo"}


def test_responses_are_understood_plain_and_streamed(told: dict[str, Any]) -> None:
    assert told["response"]["text"] == told["response_streamed"]["text"] == "Oslo"
    assert told["response"]["usage"] == told["response_streamed"]["usage"]
    assert told["response"]["usage"]["output_tokens"] == 2
    assert told["response_streamed"]["deltas"] == ["Os", "lo"]


def test_embeddings_are_unpacked(told: dict[str, Any]) -> None:
    assert told["vectors"] == [DIMENSIONS, DIMENSIONS]


def test_what_failed_is_repeated_and_what_takes_too_long_is_given_up(told: dict[str, Any]) -> None:
    assert told["repeated"] == {"text": "Oslo", "requests": 2}
    assert told["late"] == "APIConnectionTimeoutError"


@pytest.mark.parametrize(
    ("case", "name", "status", "code"),
    [
        ("key", "AuthenticationError", 401, "invalid_api_key"),
        ("model", "NotFoundError", 404, "model_not_found"),
        ("field", "BadRequestError", 400, "decimal_above_max_value"),
        ("image", "BadRequestError", 400, "unsupported_parameter"),
        ("path", "NotFoundError", 404, "unknown_url"),
        ("credit", "RateLimitError", 429, "credit_balance_exhausted"),
    ],
)
def test_every_refusal_is_the_librarys_own_error_and_is_not_repeated(
    told: dict[str, Any], case: str, name: str, status: int, code: str
) -> None:
    refusal = told["refusals"][case]
    assert (refusal["name"], refusal["status"], refusal["code"]) == (name, status, code)
    assert refusal["requests"] == 1
    assert refusal["id"].startswith("req_")


def test_what_the_library_did_is_charged_and_nothing_is_left_held(
    platform: Any, buyer: Any, told: dict[str, Any], eventually: Any
) -> None:
    eventually(lambda: platform.open_holds(buyer.id) == 0, "no hold is left")
    charges = buyer.usage()
    outcomes = [charge["outcome"] for charge in charges]
    assert outcomes.count("completed") >= 9
    assert outcomes.count("completed") + outcomes.count("abandoned") == len(outcomes) <= 18
    assert told["raw"]["entry"] in [charge["entry_id"] for charge in charges]
    assert buyer.credits()["day"]["used_tokens"] == sum(charge["total_tokens"] for charge in charges)
