"""The smallest model that a real vLLM serves: two layers of random weights behind the simulator's own tokenizer.

It needs `torch` and `transformers`, so it runs with the Python of `.venv-vllm`:

    .venv-vllm/bin/python services/simulator/darktree_simulator/tiny_model.py OUTDIR

The weights are random but not arbitrary: one dimension is a constant that the output layer uses to rule out the special
tokens and everything but printable ASCII. The model never ends an answer by itself, so `max_tokens` (or a stop string)
decides every length, and every token is one readable character.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

MAXIMUM_CONTEXT_LENGTH = 32_768
HIDDEN_SIZE = 128
HEADS = 2  # of 64: vLLM's attention on a CPU refuses smaller heads
LAYERS = 2
RULED_OUT_WEIGHT = -10.0  # a logit near -38: never sampled, and a `logit_bias` of 100 still brings it back


def write_tiny_model(directory: Path) -> None:
    """Write configuration, weights and tokenizer to `directory`; the same bytes every time."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(directory)
    _write_weights(directory)


def _write_weights(directory: Path) -> None:
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    tokenizer = _tokenizer_module()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=tokenizer.VOCABULARY_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        max_position_embeddings=MAXIMUM_CONTEXT_LENGTH,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.SPECIAL_IDS[tokenizer.MESSAGE_END],
    )
    model = Qwen2ForCausalLM(config)
    speakable = {ord("\n"), *range(ord(" "), ord("~") + 1)}
    ruled_out = [token_id for token_id in range(tokenizer.VOCABULARY_SIZE) if token_id not in speakable]
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, 1)
        model.model.embed_tokens.weight[:, 0] = 4.0
        model.lm_head.weight.normal_(0, 0.2)
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[ruled_out, 0] = RULED_OUT_WEIGHT
    model.generation_config = GenerationConfig(eos_token_id=config.eos_token_id)
    model.save_pretrained(directory)


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = _tokenizer_module()
    vocabulary = {character: byte for byte, character in enumerate(tokenizer.BYTE_CHARACTERS)}
    vocabulary |= tokenizer.SPECIAL_IDS
    table = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    table.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    table.decoder = decoders.ByteLevel()
    table.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in tokenizer.SPECIAL_IDS]
    )
    table.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.MESSAGE_END,
        "pad_token": tokenizer.END_OF_TEXT,
        "model_max_length": MAXIMUM_CONTEXT_LENGTH,
        "clean_up_tokenization_spaces": False,
        "chat_template": tokenizer.CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def _tokenizer_module() -> ModuleType:
    # Loaded by its path: the Python that has torch does not have this package installed.
    spec = importlib.util.spec_from_file_location(
        "darktree_tokenizer", Path(__file__).with_name("tokenizer.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the tiny model that a real vLLM serves on a CPU.")
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    # Python puts the script's own folder first, where our modules would pass for those of other packages.
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
    write_tiny_model(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
