"""The engine's arguments: in one order, understood by the parser of a real vLLM, and with none of them taken back."""

import itertools
import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from darktree_operator.arguments import (
    OLDEST_VERSION,
    OWNED_FLAGS,
    REFUSED_ENVIRONMENT,
    REFUSED_FLAGS,
    parse_version,
    refused_argument,
    refused_variable,
    simulator_arguments,
    vllm_arguments,
)
from darktree_operator.lane import Lane, parse
from darktree_simulator.__main__ import settings_from

ROOT = Path(__file__).parents[2]
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
PARSER = Path(__file__).with_name("parse_arguments.py")
TIMEOUT_SECONDS = 120


def lane(engine: dict[str, Any] | None = None, model: dict[str, Any] | None = None) -> Lane:
    document = {
        "metadata": {"name": "oak"},
        "spec": {
            "tier": "Standard",
            "model": {
                "source": "hf://Qwen/Qwen2.5-14B-Instruct-AWQ",
                "revision": "a" * 40,
                "servedName": "qwen25-14b-awq",
            }
            | (model or {}),
            "engine": {"contextLength": 32768} | (engine or {}),
        },
    }
    return parse(document)


def arguments(made: Lane, version: tuple[int, ...] = (0, 32, 0), gpus: int = 1) -> list[str]:
    return vllm_arguments(made, version, "Qwen/Qwen2.5-14B-Instruct-AWQ", gpus, 40)


@cache
def read_by_vllm(lists: tuple[tuple[str, ...], ...]) -> list[dict[str, Any]]:
    """What the parser of the real vLLM makes of each list; it takes some seconds to import."""
    if not VLLM_PYTHON.exists():
        pytest.skip('there is no real vLLM here: run "make vllm"')
    ran = subprocess.run(
        [VLLM_PYTHON, PARSER],
        input=json.dumps(lists),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=True,
    )
    answers: list[dict[str, Any]] = json.loads(ran.stdout.splitlines()[-1])
    return answers


EVERY = [
    lane(
        {
            **({"contextLength": context} if context else {"contextLength": None}),
            "gpuMemoryPercent": percent,
            "maxNumSeqs": sequences,
            "prefixCaching": caching,
            "kvCacheDtype": dtype,
            "extraArgs": ["--enable-auto-tool-choice", "--tool-call-parser=hermes"] if caching else [],
        },
        {"quantization": quantization, "aliases": ["oak"] if caching else []},
    )
    for context, percent, sequences, caching, dtype, quantization in itertools.product(
        (None, 32768),
        (50, 97),
        (None, 64),
        (True, False),
        ("Auto", "Fp8"),
        ("Auto", "AwqMarlin", "Fp8", "None"),
    )
]
ABBREVIATED = (("Qwen/x", "--max-num-se=3", "--served_model_name=oak"), ("Qwen/x", "--hf-overrides.a=1"))


def test_the_order_is_always_the_same() -> None:
    engine = {"maxNumSeqs": 64, "kvCacheDtype": "Fp8", "extraArgs": ["--dtype=half"]}
    made = arguments(lane(engine, {"aliases": ["oak", "elm"], "quantization": "AwqMarlin"}), gpus=2)
    assert " ".join(made) == (
        "Qwen/Qwen2.5-14B-Instruct-AWQ --served-model-name qwen25-14b-awq oak elm "
        f"--revision {'a' * 40} --port 8000 --max-model-len 32768 --gpu-memory-utilization 0.90 --max-num-seqs 64 "
        "--enable-prefix-caching --quantization awq_marlin --kv-cache-dtype fp8 --tensor-parallel-size 2 "
        "--shutdown-timeout 40 --disable-access-log-for-endpoints /health,/metrics,/ping --dtype=half"
    )


def test_an_older_engine_is_not_told_what_it_does_not_know() -> None:
    assert "--shutdown-timeout" not in arguments(lane(), version=(0, 17, 1))
    assert "--shutdown-timeout" in arguments(lane(), version=(0, 18))
    assert OLDEST_VERSION == (0, 16)


def test_a_real_vllm_understands_every_list_that_is_made() -> None:
    lists = tuple(tuple(arguments(made, gpus=gpus)) for made in EVERY for gpus in (0, 2))
    answers = read_by_vllm(lists + ABBREVIATED)
    assert [answer["refused"] for answer in answers if "refused" in answer] == []
    made = dict(zip(lists, answers, strict=False))
    first = made[tuple(arguments(EVERY[0], gpus=2))]
    assert first["model_tag"] == "Qwen/Qwen2.5-14B-Instruct-AWQ"
    assert first["revision"] == "a" * 40
    assert first["max_model_len"] == -1  # as much as fits
    assert first["gpu_memory_utilization"] == 0.5
    assert first["served_model_name"] == ["qwen25-14b-awq", "oak"]
    assert first["tensor_parallel_size"] == 2
    assert first["shutdown_timeout"] == 40
    assert first["tool_call_parser"] == "hermes"
    assert {answer["quantization"] for answer in answers[: len(lists)]} == {None, "awq_marlin", "fp8"}
    assert {answer["enable_prefix_caching"] for answer in answers[: len(lists)]} == {True, False}


def test_vllm_takes_beginnings_of_flags_and_underscores_which_is_why_they_are_refused() -> None:
    lists = tuple(tuple(arguments(made, gpus=gpus)) for made in EVERY for gpus in (0, 2))
    shortened = read_by_vllm(lists + ABBREVIATED)[len(lists)]
    assert shortened["max_num_seqs"] == 3
    assert shortened["served_model_name"] == ["oak"]


@pytest.mark.parametrize("flag", [*OWNED_FLAGS, *REFUSED_FLAGS])
def test_no_lane_takes_a_flag_of_the_operators_under_any_spelling(flag: str) -> None:
    whole = flag + "key" if flag.endswith("-") else flag
    for spelled in (f"--{whole}", f"--{whole}=1", f"--{whole[:-1]}=1", f"--{whole.replace('-', '_')}=1"):
        assert refused_argument(spelled), spelled


@pytest.mark.parametrize(
    "argument", ["-tp=2", "-q", "2", "--", "", "--UPPER=1", "--a b", "--dtype half", "-O3"]
)
def test_what_is_not_one_long_flag_is_refused(argument: str) -> None:
    assert "write --flag=value" in str(refused_argument(argument))


@pytest.mark.parametrize(
    "argument",
    [
        "--dtype=half",
        "--enable-auto-tool-choice",
        "--hf-overrides.a=1",
        '--hf-overrides={"a": 1}',
        "--seed=0",
    ],
)
def test_other_flags_are_the_lanes_own(argument: str) -> None:
    assert refused_argument(argument) is None


def test_a_refusal_names_the_field_to_use_instead() -> None:
    assert refused_argument("--max-model-len=4096") == (
        "--max-model-len is the operator's: use spec.engine.contextLength"
    )
    assert "developer" in str(refused_variable("VLLM_SERVER_DEV_MODE")) or refused_variable(
        "VLLM_SERVER_DEV_MODE"
    )
    assert "spec.secrets.engineKey" in str(refused_variable("VLLM_API_KEY"))
    assert refused_variable("VLLM_LOGGING_LEVEL") is None


def test_the_schema_refuses_what_is_refused_here() -> None:
    document = yaml.safe_load((ROOT / "crds" / "inferencelanes.yaml").read_text())
    schema = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    engine = schema["properties"]["spec"]["properties"]["engine"]["properties"]
    rules = " ".join(rule["rule"] for rule in engine["extraArgs"]["items"]["x-kubernetes-validations"])
    flags = set(re.findall(r"'--([a-z][a-z-]*)'", rules))
    assert set(OWNED_FLAGS) | set(REFUSED_FLAGS) <= flags
    names = " ".join(rule["rule"] for rule in engine["env"]["items"]["x-kubernetes-validations"])
    assert set(REFUSED_ENVIRONMENT) <= set(re.findall(r"'([A-Z_]+)'", names))


@pytest.mark.parametrize(
    ("text", "version"),
    [("0.32.0", (0, 32, 0)), ("v0.18", (0, 18)), ("0.32.1rc1", (0, 32, 1)), ("1.0.0+cu129", (1, 0, 0))],
)
def test_a_version_is_read(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["", "latest", "0", "0.a"])
def test_what_is_no_version_is_none(text: str) -> None:
    assert parse_version(text) is None


def test_the_simulator_takes_its_arguments() -> None:
    made = lane({"kind": "Simulator", "maxNumSeqs": 4}, {"aliases": ["oak"]})
    settings = settings_from(simulator_arguments(made))
    assert settings.models == ["qwen25-14b-awq", "oak"]
    assert (settings.host, settings.port, settings.context_length) == ("0.0.0.0", 8000, 32768)
    assert settings.tokens_per_second == 100
    assert settings.maximum_concurrent_sequences == 4
