"""The check before a GPU is held: what cannot work is refused with the field to change, what is tight is told."""

from pathlib import Path
from typing import Any

import pytest

from darktree_operator.config import read_config
from darktree_operator.lane import parse
from darktree_operator.preflight import check, estimate
from darktree_operator.reasons import Reason
from darktree_operator.resolution import Resolved, resolve

CONFIG = read_config(Path(__file__).parents[2] / "examples" / "operator.yaml")
SMALL, LARGE = "hf://Qwen/Qwen2.5-14B-Instruct-AWQ", "hf://Qwen/Qwen2.5-32B-Instruct-AWQ"


def resolved(source: str, accelerator: str, count: int = 1, model: Any = None, **engine: Any) -> Resolved:
    document = {
        "metadata": {"name": "oak"},
        "spec": {
            "tier": "Standard",
            "model": {"source": source, "revision": "a" * 40, "servedName": "oak"} | (model or {}),
            "engine": engine,
            "accelerator": {"class": accelerator, "count": count},
        },
    }
    found = resolve(parse(document), CONFIG)
    assert isinstance(found, Resolved)
    return found


def test_the_cache_of_a_token_is_the_keys_and_values_of_every_layer() -> None:
    found = estimate(resolved(SMALL, "nvidia-l4", contextLength=32768))
    assert found is not None
    assert found.kv_bytes_per_token == 2 * 48 * 8 * 128 * 2
    assert found.budget_mib == 22 * 1024 * 90 // 100
    assert found.cache_mib == found.budget_mib - round(9.3 * 1024) - 1536
    eight_bits = estimate(resolved(SMALL, "nvidia-l4", kvCacheDtype="Fp8"))
    assert eight_bits is not None
    assert eight_bits.kv_bytes_per_token == found.kv_bytes_per_token // 2


FITS: list[tuple[str, str, int, dict[str, Any]]] = [
    (SMALL, "nvidia-l4", 1, {"contextLength": 32768}),
    (SMALL, "nvidia-l4", 1, {}),
    (LARGE, "nvidia-l40s", 1, {"contextLength": 32768}),
    (LARGE, "nvidia-l4", 2, {"contextLength": 32768}),
    ("pvc://models/nobody-knows", "cpu", 1, {}),
]


@pytest.mark.parametrize(("source", "accelerator", "count", "engine"), FITS)
def test_what_fits_is_let_through(source: str, accelerator: str, count: int, engine: dict[str, Any]) -> None:
    assert check(resolved(source, accelerator, count, **engine))[0] == []


def test_a_context_that_does_not_fit_is_refused_with_one_that_does() -> None:
    (refusal,), _ = check(resolved(LARGE, "nvidia-l4", contextLength=32768, gpuMemoryPercent=97))
    assert (refusal.reason, refusal.field) == (Reason.KV_CACHE_TOO_SMALL, "spec.engine.contextLength")
    most = int(refusal.message.removeprefix("set it to ").split()[0])
    assert most % 256 == 0
    assert check(resolved(LARGE, "nvidia-l4", contextLength=most, gpuMemoryPercent=97))[0] == []


def test_weights_that_do_not_fit_are_refused_naming_what_would_help() -> None:
    (refusal,), _ = check(resolved(LARGE, "nvidia-l4", gpuMemoryPercent=80))
    assert (refusal.reason, refusal.field) == (Reason.INSUFFICIENT_MEMORY, "spec.accelerator.class")
    assert "18.0 GiB" in refusal.message
    assert "spec.accelerator.count" in refusal.message
    assert "spec.engine.gpuMemoryPercent (80)" in refusal.message


def test_a_context_longer_than_the_models_own_is_refused() -> None:
    (refusal,), _ = check(resolved(SMALL, "nvidia-a100-80gb", contextLength=65536))
    assert (refusal.reason, refusal.field) == (Reason.INVALID_SPEC, "spec.engine.contextLength")
    assert "32768 or less" in refusal.message


def test_room_for_few_long_requests_is_told() -> None:
    refusals, (note,) = check(resolved(SMALL, "nvidia-l4", contextLength=32768))
    assert refusals == []
    assert "1 of the longest contexts at once" in note
    assert check(resolved(SMALL, "nvidia-l4", contextLength=4096))[1] == []


NAMED: list[tuple[str, dict[str, Any], int]] = [
    ("hf://example/oak-70B-instruct", {}, 70_000_000_000 * 2),
    ("hf://example/oak-8b-fp8", {}, 8_000_000_000),
    ("hf://example/oak-1.5B", {"quantization": "Fp8"}, 1_500_000_000),
    ("hf://example/oak-72b-gptq-int4", {}, 72_000_000_000 * 17 // 32),
]


@pytest.mark.parametrize(("source", "model", "size"), NAMED)
def test_a_model_that_nobody_described_is_weighed_by_its_name(
    source: str, model: dict[str, Any], size: int
) -> None:
    found = estimate(resolved(source, "nvidia-a100-80gb", model=model))
    assert found is not None
    assert found.weights_mib == round(size / 2**20)
    assert found.cache_tokens is None


def test_a_model_by_name_alone_is_refused_only_for_its_weights() -> None:
    (refusal,), _ = check(resolved("hf://example/oak-70B", "nvidia-a100-80gb"))
    assert refusal.reason is Reason.INSUFFICIENT_MEMORY
    assert check(resolved("hf://example/oak-70B", "nvidia-a100-80gb", count=2, contextLength=131072))[0] == []


def test_what_was_not_checked_is_said() -> None:
    refusals, (note,) = check(resolved("pvc://models/mystery", "nvidia-l4"))
    assert refusals == []
    assert "its memory was not checked" in note
