"""Constraints that contradict themselves are refused here: an engine would fail on them, and be asked again."""

from typing import Any

import pytest

SCHEMA = {"type": "object"}
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"jason": SCHEMA}}, "structured_outputs.jason", "unknown_parameter"),
        ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice", "invalid_type"),
        (
            {"structured_outputs": {"json": SCHEMA}, "response_format": FORM},
            "structured_outputs",
            "invalid_value",
        ),
        (
            {"structured_outputs": {"choice": ["a"]}, "allowed_token_ids": [98]},
            "allowed_token_ids",
            "invalid_value",
        ),
        ({"structured_outputs": {"choice": ["a"]}, "bad_words": ["a"]}, "bad_words", "invalid_value"),
        ({"response_format": FORM, "bad_words": ["{"]}, "bad_words", "invalid_value"),
        ({"guided_json": SCHEMA}, "guided_json", "unsupported_parameter"),
        ({"guided_regex": "a"}, "guided_regex", "unsupported_parameter"),
        ({"guided_choice": ["a"]}, "guided_choice", "unsupported_parameter"),
        ({"guided_grammar": "a"}, "guided_grammar", "unsupported_parameter"),
    ],
)
def test_what_no_answer_can_satisfy_is_refused_by_its_name(
    customer: Any, fields: dict[str, Any], param: str, code: str
) -> None:
    refused = customer.chat(**fields)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (400, param, code)
    if param.startswith("guided_"):
        assert "'structured_outputs'" in error["message"]
    assert customer.usage() == []


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"choice": ["a", "b"]}},
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True, "regex": None}},
        {"response_format": {"type": "text"}, "bad_words": ["a"]},
        {"response_format": {"type": "json_object"}},
        {"response_format": FORM},
    ],
)
def test_one_constraint_passes_through_unharmed(customer: Any, engine: Any, fields: dict[str, Any]) -> None:
    engine.refuse(
        400, {"error": {"message": "seen", "type": "BadRequestError", "param": "body.x", "code": 400}}
    )
    refused = customer.chat(model="qwen25-32b-awq", **fields)
    assert refused.json()["error"]["param"] == "x"
    (sent,) = engine.bodies
    assert {name: sent[name] for name in fields} == fields
