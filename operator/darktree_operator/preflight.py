"""Whether a model fits its accelerator, before a GPU is held: weights, the cache of one context, what the engine needs.

An estimate, in whole MiB. It refuses only what cannot work at all: weights that do not fit, or a context of which not
even one sequence fits, which is where vLLM itself gives up. Everything tighter is a note. A model that nobody knows is
not refused, and the note says that nothing was checked.
"""

import re
from dataclasses import dataclass

from darktree_operator.config import ModelFacts
from darktree_operator.lane import LEAST_CONTEXT_LENGTH
from darktree_operator.reasons import Reason
from darktree_operator.resolution import Refusal, Resolved

MIB = 2**20
GIB_IN_MIB = 1024
RESERVE_MIB_PER_GPU = 1536  # activations, CUDA graphs and what torch and NCCL keep beside the cache
CONTEXT_STEP = 256  # suggested contexts are rounded down to this
BYTES_PER_VALUE = {"Auto": 2, "Fp8": 1}
FEW_SEQUENCES = 4  # fewer full contexts at once are worth a note

# Bytes a parameter by how the weights are kept; four bits, and a scale and a zero for each group of 128.
_BITS = {"AwqMarlin": 4.25, "Fp8": 8.0, "None": 16.0}
_PARAMETERS = re.compile(r"(?<![a-z0-9.])(\d{1,4}(?:\.\d{1,2})?)b(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a replica needs and has, in MiB over all its GPUs."""

    budget_mib: int
    weights_mib: int
    reserve_mib: int
    kv_bytes_per_token: int | None
    """None where only the model's size is known, from its name."""

    @property
    def cache_mib(self) -> int:
        """What is left for the cache."""
        return self.budget_mib - self.weights_mib - self.reserve_mib

    @property
    def cache_tokens(self) -> int | None:
        if self.kv_bytes_per_token is None:
            return None
        return max(0, self.cache_mib) * MIB // self.kv_bytes_per_token


def estimate(resolved: Resolved) -> Estimate | None:
    """Return the estimate; None where there is no accelerator with a memory of its own, or nothing is known."""
    accelerator, spec = resolved.accelerator, resolved.lane.spec
    if accelerator is None or not resolved.gpus or spec.engine.kind != "VLLM":
        return None
    total = accelerator.memory_gib * GIB_IN_MIB * resolved.gpus
    facts = resolved.config.models.get(spec.model.source)
    weights = round(facts.weights_gib * GIB_IN_MIB) if facts else _weights_by_name(resolved)
    if weights is None:
        return None
    return Estimate(
        budget_mib=total * spec.engine.gpu_memory_percent // 100,
        weights_mib=weights,
        reserve_mib=RESERVE_MIB_PER_GPU * resolved.gpus,
        kv_bytes_per_token=_kv_bytes(facts, spec.engine.kv_cache_dtype) if facts else None,
    )


def check(resolved: Resolved) -> tuple[list[Refusal], list[str]]:
    """Return why the lane cannot fit, and what else is worth knowing, each naming the field to change."""
    spec = resolved.lane.spec
    facts = resolved.config.models.get(spec.model.source)
    context = spec.engine.context_length
    if facts is not None and context is not None and context > facts.max_context_length:
        message = f"set it to {facts.max_context_length} or less: the model was made for no more"
        return [Refusal(Reason.INVALID_SPEC, "spec.engine.contextLength", message)], []
    found = estimate(resolved)
    if found is None:
        unknown = spec.engine.kind == "VLLM" and resolved.gpus
        known = "its memory was not checked: add the model to models in the operator's configuration"
        return [], [f"{spec.model.source} is not known, {known}"] if unknown else []
    tokens = found.cache_tokens
    if found.cache_mib <= 0 or (tokens is not None and tokens < LEAST_CONTEXT_LENGTH):
        return [_too_large(resolved, found)], []
    if tokens is None:
        return [], [
            f"the weights ({_gib(found.weights_mib)}) were estimated by the model's name; the cache was not"
        ]
    if context is not None and context > tokens:
        most = tokens // CONTEXT_STEP * CONTEXT_STEP
        message = (
            f"set it to {most} or less: of {_gib(found.budget_mib)} the weights take {_gib(found.weights_mib)}, "
            f"which leaves a cache for {tokens} tokens"
        )
        return [Refusal(Reason.KV_CACHE_TOO_SMALL, "spec.engine.contextLength", message)], []
    return [], _notes(resolved, tokens, context or (facts.max_context_length if facts else tokens))


def _notes(resolved: Resolved, tokens: int, context: int) -> list[str]:
    at_once = tokens // context
    most = resolved.lane.spec.engine.max_num_seqs
    if at_once < FEW_SEQUENCES and at_once < (most or FEW_SEQUENCES):
        return [
            f"the cache holds {tokens} tokens, {at_once} of the longest contexts at once; more wait: lower "
            "spec.engine.contextLength, or use more of spec.accelerator"
        ]
    return []


def _too_large(resolved: Resolved, found: Estimate) -> Refusal:
    spec = resolved.lane.spec
    message = (
        f"the weights need {_gib(found.weights_mib)} and the engine {_gib(found.reserve_mib)} of "
        f"{_gib(found.budget_mib)}: use a larger class, raise spec.accelerator.count"
    )
    if spec.engine.gpu_memory_percent < 90:
        message += f", or raise spec.engine.gpuMemoryPercent ({spec.engine.gpu_memory_percent})"
    return Refusal(Reason.INSUFFICIENT_MEMORY, "spec.accelerator.class", message)


def _weights_by_name(resolved: Resolved) -> int | None:
    """`Qwen2.5-14B-Instruct-AWQ` says how many parameters it has, and how they are kept."""
    model = resolved.lane.spec.model
    found = _PARAMETERS.findall(model.source)
    if not found:
        return None
    quantization: str = model.quantization
    if quantization == "Auto":
        name = model.source.lower()
        four = ("awq", "gptq", "4bit", "int4")
        quantization = (
            "AwqMarlin" if any(word in name for word in four) else "Fp8" if "fp8" in name else "None"
        )
    return round(max(map(float, found)) * 1e9 * _BITS[quantization] / 8 / MIB)


def _kv_bytes(facts: ModelFacts, dtype: str) -> int:
    """Keys and values, of each layer, for one token."""
    return 2 * facts.layers * facts.kv_heads * facts.head_size * BYTES_PER_VALUE[dtype]


def _gib(mib: int) -> str:
    return f"{mib / GIB_IN_MIB:.1f} GiB"
