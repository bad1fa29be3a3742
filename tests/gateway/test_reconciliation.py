"""Gateways tell billing what engines say they processed, restarts and all."""

from collections.abc import Callable
from typing import Any

from darktree_gateway.reconciliation import newest_of, total_of

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
