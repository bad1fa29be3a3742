"""Gateways tell billing what engines say they processed, restarts and all."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from darktree_gateway.engine_facts import cache_of
from darktree_gateway.reconciliation import newest_of, total_of
from darktree_operator.signals import parse_engines
from darktree_simulator.answers import VERSION

EXPOSITION = """# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 5.0
vllm:generation_tokens_total{engine="1",model_name="m"} 7.0
vllm:generation_tokens_created{engine="0",model_name="m"} 1.7954621820890605e+09
vllm:generation_tokens_created{engine="1",model_name="m"} 1.7954621821890605e+09
"""


def test_counters_are_summed_and_the_latest_start_counts() -> None:
    assert total_of(EXPOSITION, "vllm:generation_tokens_total") == 12
    assert newest_of(EXPOSITION, "vllm:generation_tokens_created") == 1795462182.1890605
    assert newest_of(EXPOSITION, "process_start_time_seconds") is None


def test_what_an_engine_processed_reaches_billing_and_agrees_with_what_was_charged(
    platform: Any, eventually: Callable[..., Any]
) -> None:
    customer = platform.customer()
    assert customer.complete(prompt=[11, 22, 33], max_tokens=8, ignore_eos=True).status_code == 200
    query = """SELECT sum(prompt_tokens)::bigint, sum(completion_tokens)::bigint
               FROM billing.engine_run WHERE lane = 'standard'"""
    eventually(lambda: platform.sql(query)[0] == platform.engine_tokens(), "the reading")
    # The scripted engine does not say when it started: a restart could not be told, so it is not compared.
    assert platform.sql("SELECT count(*) FROM billing.engine_run WHERE lane = 'scripted'") == [(0,)]
    report = platform.admin("GET", "/reconciliation")
    assert report["ledger"]["problems"] == []


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            'block_size="16",kv_cache_size_tokens="35840",kv_cache_max_concurrency="8.75",num_gpu_blocks="2240"',
            ("35840", "8.75"),
        ),
        ('block_size="16",kv_cache_size_tokens="None",kv_cache_max_concurrency="None"', ("", "")),
        ('block_size="128",engine="0",num_gpu_blocks="100"', ("12800", "")),
        ('swap="a \\"quoted\\" word"', ("", "")),
    ],
)
def test_an_engines_cache_is_read_from_what_vllm_says(labels: str, said: tuple[str, str]) -> None:
    assert cache_of(f"# HELP x\nvllm:cache_config_info{{{labels}}} 1.0\n") == said
    assert cache_of("vllm:num_requests_running 1.0\n") == ("", "")


def test_what_an_engine_says_of_itself_is_shown_to_the_operator(
    platform: Any, eventually: Callable[..., Any]
) -> None:
    def facts() -> dict[str, Any]:
        return parse_engines(httpx.get(f"{platform.gateway_url}/metrics").text).get("standard", {})

    # Others that this process served before are told of too.
    eventually(lambda: VERSION in {said.version for said in facts().values()}, "the engine's facts")
    said = next(said for said in facts().values() if said.version == VERSION)
    assert said.max_model_len
