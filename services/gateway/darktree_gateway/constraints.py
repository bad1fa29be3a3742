"""What an answer may be made to look like: one constraint at a time, and nothing beside it that it cannot live with.

An engine meets what contradicts itself only while it generates, and then fails as if it were its own fault.
"""

from typing import Any

from darktree_gateway.fields import unknown, wrong_type, wrong_value

_KINDS = frozenset({"json", "regex", "choice", "grammar", "json_object", "structural_tag"})
_OPTIONS = frozenset({"disable_any_whitespace", "disable_additional_properties", "whitespace_pattern"})
_NARROWING = ("allowed_token_ids", "bad_words")  # these rule tokens out that a constraint may need


def check(body: dict[str, Any]) -> None:
    """Raise BadRequest for constraints that no answer can satisfy."""
    structured = body.get("structured_outputs")
    if structured is not None:
        _check_structured(structured)
    form = body.get("response_format")
    shaped = form is not None and form.get("type") != "text"
    if structured is not None and shaped:
        raise wrong_value(
            "structured_outputs", "it and 'response_format' are both set. Set only one of them."
        )
    constraint = "structured_outputs" if structured is not None else "response_format"
    if structured is not None or shaped:
        for name in _NARROWING:
            if body.get(name):
                raise wrong_value(
                    name, f"it rules out tokens that '{constraint}' may need. Set only one of them."
                )


def _check_structured(structured: dict[str, Any]) -> None:
    for name in structured:
        if name not in _KINDS | _OPTIONS:
            raise unknown(f"structured_outputs.{name}")
    kinds = sorted(name for name in _KINDS if structured.get(name) is not None)
    if len(kinds) != 1:
        found = f"found {', '.join(kinds)}" if kinds else "found none"
        raise wrong_value(
            "structured_outputs", f"exactly one of {', '.join(sorted(_KINDS))} is needed; {found}."
        )
    if kinds == ["choice"] and type(structured["choice"]) is not list:
        raise wrong_type("structured_outputs.choice", "an array of strings", structured["choice"])
