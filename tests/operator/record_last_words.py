"""Makes a real vLLM on the CPU fail in every way that is cheap to make, and keeps what Kubernetes would keep of it.

    .venv/bin/python tests/operator/record_last_words.py [NAME...]

Writes `last_words/NAME.txt`: the end of the termination log where vLLM wrote there, else the end of its output, as the
kubelet does for FallbackToLogsOnError. The folders of this machine are replaced by those of vLLM's image.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from darktree_operator.lastwords import MAX_LAST_WORDS_BYTES, logging_config
from darktree_simulator import tiny_model

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
FOLDER = Path(__file__).parent / "last_words"
IMAGE_PACKAGES = "/usr/local/lib/python3.12/dist-packages"
MAX_OUTPUT_BYTES, MAX_OUTPUT_LINES = 2048, 80  # the kubelet's limits for the end of an output
TIMEOUT_SECONDS = 240
SMALL_CACHE = "--kv-cache-memory-bytes=9000000"


@dataclass(frozen=True)
class Failure:
    """A model's folder, made from the tiny model by `change`, and the arguments that go wrong with it."""

    arguments: tuple[str, ...]
    change: str = ""


FAILURES = {
    "kv_cache_too_small": Failure(("--max-model-len=30000", SMALL_CACHE)),
    "kv_cache_too_small_one_process": Failure(
        ("--max-model-len=30000", SMALL_CACHE, "--distributed-executor-backend=uni")
    ),
    "memory_of_the_node": Failure(("--max-model-len=256", "--gpu-memory-utilization=0.97")),
    "context_too_long": Failure(("--max-model-len=9999999",)),
    "too_many_sequences": Failure(
        ("--max-model-len=1024", "--max-num-seqs=4096", "--max-num-batched-tokens=2048")
    ),
    "heads_not_divisible": Failure(("--max-model-len=256", "--tensor-parallel-size=3")),
    "unknown_flag": Failure(("--max-model-len=256", "--no-such-flag=1")),
    "invalid_value": Failure(("--max-model-len=12x",)),
    "invalid_choice": Failure(("--max-model-len=256", "--kv-cache-dtype=fp9")),
    "tool_choice_without_parser": Failure(("--max-model-len=256", "--enable-auto-tool-choice")),
    "unknown_tool_parser": Failure(
        ("--max-model-len=256", "--enable-auto-tool-choice", "--tool-call-parser=nope")
    ),
    "not_quantized": Failure(("--max-model-len=256", "--quantization=awq_marlin")),
    "otherwise_quantized": Failure(("--max-model-len=256", "--quantization=fp8"), "awq"),
    "unknown_architecture": Failure(("--max-model-len=256",), "architecture"),
    "unknown_model_type": Failure(("--max-model-len=256",), "type"),
    "broken_weights": Failure(("--max-model-len=256", SMALL_CACHE), "truncated"),
    "empty_folder": Failure(("--max-model-len=256",), "empty"),
    "not_in_the_cache": Failure(("--max-model-len=256", "--model=Qwen/Nothing")),
}


def main(names: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in names or FAILURES:
        with tempfile.TemporaryDirectory(prefix="dt-") as folder:
            words = fail(FAILURES[name], Path(folder))
        (FOLDER / f"{name}.txt").write_text(words)
        print(name, len(words.encode()), "bytes")


def fail(failure: Failure, folder: Path) -> str:
    """Start vLLM so that it fails; return its last words as Kubernetes would keep them."""
    model, log, logging = folder / "model", folder / "termination-log", folder / "logging.json"
    subprocess.run([PYTHON, str(tiny_model.__file__), model], check=True, capture_output=True)
    _spoil(model, failure.change)
    logging.write_text(logging_config(str(log)))
    argv = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", f"--model={model}", "--port=0"]
    environment = os.environ | {
        "VLLM_LOGGING_CONFIG_PATH": str(logging),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HOME": str(folder / "hub"),
    }
    ended = subprocess.run(
        [*argv, "--dtype=float32", "--enforce-eager", *failure.arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert ended.returncode, "it did not fail"
    return kept(ended.stdout, log.read_bytes() if log.exists() else b"", str(folder))


def kept(output: bytes, log: bytes, folder: str) -> str:
    """Return what the kubelet keeps, with the folders of an image."""
    words = (log or output).decode(errors="replace")
    words = words.replace(str(PYTHON.parents[1] / "lib" / "python3.11" / "site-packages"), IMAGE_PACKAGES)
    words = words.replace(folder, "/model").replace(sys.base_prefix, "/usr")
    words = re.sub(r"/\S*/\.pyenv/versions/[\d.]+", "/usr", words)
    if log:
        return words.encode()[-MAX_LAST_WORDS_BYTES:].decode(errors="ignore")
    lines = words.splitlines(keepends=True)[-MAX_OUTPUT_LINES:]
    return "".join(lines).encode()[-MAX_OUTPUT_BYTES:].decode(errors="ignore")


def _spoil(model: Path, change: str) -> None:
    config = model / "config.json"
    document = json.loads(config.read_text())
    if change == "awq":
        quantization = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
        document["quantization_config"] = quantization | {"version": "gemm"}
    elif change == "architecture":
        document["architectures"] = ["Grok9ForCausalLM"]
    elif change == "type":
        document["model_type"] = "grok9"
    elif change == "truncated":
        weights = next(model.glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:3000])
    config.write_text(json.dumps(document))
    if change == "empty":
        for file in model.iterdir():
            file.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
