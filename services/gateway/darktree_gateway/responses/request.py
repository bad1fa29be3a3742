"""What a body for `/v1/responses` asks, as the chat that answers it; and what of it the response says again.

Nothing is stored: what needs the platform to remember is refused, and says what to do instead.
"""

from collections.abc import Mapping
from typing import Any

from darktree_gateway import fields
from darktree_gateway.fields import elsewhere, integer, items, mapping, one_of, refuse, string
from darktree_gateway.responses.items import messages_of

MAX_TOOLS = 128
LOGPROBS = "message.output_text.logprobs"
_SEND_ALL = "Nothing is stored here: send the whole conversation as 'input'."


def _never(why: str) -> fields.Check:
    def check(name: str, value: Any) -> None:
        fields.boolean(name, value)
        if value:
            raise fields.unsupported(name, why)

    return check


# Taken as a chat takes them.
_OF_CHAT = (
    "model", "stream", "temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "stop",
    "top_k", "min_p", "repetition_penalty", "stop_token_ids", "include_stop_str_in_output", "ignore_eos",
    "skip_special_tokens", "structured_outputs", "chat_template_kwargs", "include_reasoning", "parallel_tool_calls",
    "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier", "metadata",
    "guided_json", "guided_regex", "guided_choice", "guided_grammar", "priority", "cache_salt",
)  # fmt: skip

CHECKS: Mapping[str, fields.Check] = {name: fields.CHAT[name] for name in _OF_CHAT} | {
    "input": elsewhere,
    "instructions": string,
    "max_output_tokens": integer(1),
    "max_tool_calls": integer(1),
    "include": items(one_of(LOGPROBS, "reasoning.encrypted_content")),
    "top_logprobs": integer(0, 20),
    "tools": items(mapping, MAX_TOOLS),
    "tool_choice": elsewhere,
    "text": mapping,
    "reasoning": mapping,
    "truncation": elsewhere,
    "stream_options": mapping,
    # understood, and refused
    "store": _never(
        "Nothing is stored here: set 'store' to false, and send the whole conversation as 'input'."
    ),
    "background": _never("Every request is answered while it is open: set 'background' to false."),
    "previous_response_id": refuse(_SEND_ALL),
    "conversation": refuse(_SEND_ALL),
    "prompt": refuse("No prompts are stored here: send it as 'instructions' and 'input'."),
    "previous_input_messages": refuse(_SEND_ALL),
    "max_tokens": refuse("Use 'max_output_tokens' instead."),
    "response_format": refuse("Use 'text.format' instead."),
    "messages": refuse("Use 'input' instead."),
}
# As OpenAI's API has them, for a response whose request did not say.
_SAID: Mapping[str, Any] = {
    "instructions": None, "max_output_tokens": None, "max_tool_calls": None, "metadata": {},
    "parallel_tool_calls": True,
    "prompt_cache_key": None, "reasoning": {"effort": None, "summary": None}, "safety_identifier": None,
    "service_tier": "default", "temperature": None, "text": {"format": {"type": "text"}}, "tool_choice": "auto",
    "tools": [], "top_logprobs": 0, "top_p": None, "truncation": "disabled", "user": None,
}  # fmt: skip
_NEVER: Mapping[str, Any] = {"background": False, "store": False, "previous_response_id": None}


def as_chat(body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the chat that a checked body asks for, and what its response says again. Raises BadRequest."""
    if "input" not in body:
        raise fields.missing("input")
    messages, continues = messages_of(body["input"])
    if body.get("instructions"):
        messages.insert(0, {"role": "system", "content": body["instructions"]})
    chat = {name: body[name] for name in _OF_CHAT if name in body} | {"messages": messages}
    if continues:
        chat |= {"continue_final_message": True, "add_generation_prompt": False}
    if "max_output_tokens" in body:
        chat["max_completion_tokens"] = body["max_output_tokens"]
    if LOGPROBS in body.get("include", ()):
        chat |= {"logprobs": True, "top_logprobs": body.get("top_logprobs", 0)}
    if body.get("truncation", "disabled") != "disabled":
        raise fields.unsupported("truncation", "Conversations are never cut; shorten the input instead.")
    _read_stream_options(body)
    chat |= _tools(body) | _reasoning(body.get("reasoning", {})) | _form(body.get("text", {}))
    said = {name: body.get(name, value) for name, value in _SAID.items()}
    return chat, said | dict(_NEVER)


def _read_stream_options(body: dict[str, Any]) -> None:
    options = body.get("stream_options")
    if options is not None and not body.get("stream"):
        raise fields.wrong_value("stream_options", "it is only allowed when 'stream' is true.")
    for name in options or ():
        if name != "include_obfuscation":
            raise fields.unknown(f"stream_options.{name}")


def _tools(body: dict[str, Any]) -> dict[str, Any]:
    chat: dict[str, Any] = {}
    if body.get("tools"):
        chat["tools"] = [_tool(f"tools[{index}]", tool) for index, tool in enumerate(body["tools"])]
    choice = body.get("tool_choice")
    if type(choice) is dict:
        if choice.get("type") != "function" or type(choice.get("name")) is not str:
            raise fields.unsupported("tool_choice", "It may be a word, or name a function.")
        choice = {"type": "function", "function": {"name": choice["name"]}}
    elif choice is not None:
        one_of("none", "auto", "required")("tool_choice", choice)
    if choice is not None and "tools" in chat:
        chat["tool_choice"] = choice
    return chat


def _tool(name: str, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise fields.unsupported(
            f"{name}.type", "Only functions, which you run yourself, can be called here."
        )
    for field in tool:
        if field not in {"type", "name", "description", "parameters", "strict"}:
            raise fields.unknown(f"{name}.{field}")
    if type(tool.get("name")) is not str:
        raise fields.missing(f"{name}.name")
    return {"type": "function", "function": {field: tool[field] for field in tool if field != "type"}}


def _reasoning(given: dict[str, Any]) -> dict[str, Any]:
    for name in given:
        if name not in {"effort", "summary", "generate_summary"}:
            raise fields.unknown(f"reasoning.{name}")
    effort = given.get("effort")
    if effort is None:
        return {}
    fields.CHAT["reasoning_effort"]("reasoning.effort", effort)
    return {"reasoning_effort": effort}


def _form(given: dict[str, Any]) -> dict[str, Any]:
    """Return a chat's `response_format` of `text.format`."""
    for name in given:
        if name not in {"format", "verbosity"}:
            raise fields.unknown(f"text.{name}")
    if given.get("verbosity") is not None:
        fields.CHAT["verbosity"]("text.verbosity", given["verbosity"])
    form = given.get("format")
    if form is None:
        return {}
    mapping("text.format", form)
    one_of("text", "json_object", "json_schema")("text.format.type", form.get("type"))
    if form["type"] != "json_schema":
        return {"response_format": {"type": form["type"]}}
    if type(form.get("schema")) is not dict:
        raise fields.missing("text.format.schema")
    schema = {name: value for name, value in form.items() if name != "type" and value is not None}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "response"} | schema}}
