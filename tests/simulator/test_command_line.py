"""The process: its options, its environment, and what they become."""

import pytest

from darktree_simulator.__main__ import settings_from


def test_the_command_line_sets_what_it_names() -> None:
    words = "--port 9005 --model oak --model tree --tokens-per-second 45.5 --context-length 512"
    settings = settings_from(words.split())
    assert (settings.port, settings.models, settings.context_length) == (9005, ["oak", "tree"], 512)
    assert settings.tokens_per_second == 45.5
    assert settings.host == "127.0.0.1"


def test_the_environment_sets_what_the_command_line_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKTREE_SIMULATOR_MODELS", '["oak"]')
    monkeypatch.setenv("DARKTREE_SIMULATOR_PORT", "9006")
    monkeypatch.setenv("DARKTREE_SIMULATOR_FAULTS", '{"latency_seconds": 2}')
    settings = settings_from(["--port", "9007"])
    assert (settings.models, settings.port) == (["oak"], 9007)
    assert settings.faults.latency_seconds == 2


def test_a_negative_speed_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens_per_second"):
        settings_from(["--tokens-per-second", "-1"])
