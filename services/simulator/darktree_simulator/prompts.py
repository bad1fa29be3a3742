"""From a request to the token ids that the model would read, refused where vLLM refuses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from darktree_simulator import tokenizer
from darktree_simulator.bodies import ChatRequest, CompletionRequest, Message, TokenizeRequest
from darktree_simulator.errors import EngineError, bad_request, invalid_body

# No text is shorter than this many characters a token: the longest token is "<|endoftext|>".
LONGEST_TOKEN_CHARACTERS = 13


def chat_prompt(request: ChatRequest | TokenizeRequest, model: str) -> str:
    """The text of a conversation in the chat template. Raises `EngineError`."""
    messages = request.messages or []
    if request.continue_final_message and request.add_generation_prompt:
        raise bad_request("continue_final_message and add_generation_prompt are not compatible.")
    if not messages:
        raise bad_request(
            "Cannot apply chat template to an empty conversation. Provide at least one message."
        )
    tools = [_normal_tool(tool) for tool in request.tools] if request.tools else None
    plain = [_plain(message, model) for message in messages]
    try:
        text = tokenizer.render_chat(plain, tools, request.add_generation_prompt)
    except ValueError as error:
        # Arguments of a call that are no JSON.
        raise bad_request(str(error)) from None
    if request.continue_final_message:
        text = text.removesuffix(f"{tokenizer.MESSAGE_END}\n")
    return text


def completion_prompts(request: CompletionRequest, context_length: int) -> list[list[int]]:
    """The ids of each prompt of a plain completion. Raises `EngineError`."""
    prompt = request.prompt
    if prompt is None or prompt == "":
        raise bad_request("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if prompt == []:
        raise bad_request("You must pass at least one prompt")
    entries: list[Any] = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else list(prompt)
    return [ids_of(entry, context_length) for entry in entries]


def encode_within(text: str, context_length: int) -> list[int]:
    """The ids of a prompt that must fit. Raises `EngineError` when it is longer than the context."""
    bound = LONGEST_TOKEN_CHARACTERS * context_length
    if len(text) > bound:
        raise bad_request(
            f"This model's maximum context length is {context_length} tokens. However, your prompt contains "
            f"{len(text)} characters (more than {bound} characters, which is the upper bound for {context_length} "
            "input tokens). Please reduce the length of the input prompt.",
            "input_text",
            len(text),
        )
    ids = encode(text)
    if len(ids) > context_length:
        raise too_long(f"at least {context_length + 1}", context_length + 1, context_length)
    return ids


def encode(text: str) -> list[int]:
    """The ids of a text. Raises `EngineError` for half a surrogate pair, which is not text."""
    try:
        return tokenizer.encode(text)
    except UnicodeEncodeError:
        message = "TextEncodeInput must be Union[TextInputSequence, Tuple[InputSequence, InputSequence]]"
        raise bad_request(message) from None


def ids_of(entry: str | Sequence[int], context_length: int) -> list[int]:
    """The ids of one prompt, given as text or as ids. Raises `EngineError`."""
    ids = encode_within(entry, context_length) if isinstance(entry, str) else list(entry)
    if not ids:
        raise bad_request("The decoder prompt cannot be empty")
    for token_id in ids:
        if not 0 <= token_id < tokenizer.VOCABULARY_SIZE:
            raise bad_request(f"Token id {token_id} is out of vocabulary")
    if len(ids) > context_length:
        raise too_long(str(len(ids)), len(ids), context_length)
    return ids


def too_long(shown: str, count: int, context_length: int) -> EngineError:
    return bad_request(
        f"This model's maximum context length is {context_length} tokens. However, your prompt contains {shown} "
        "input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the "
        "input prompt.",
        "input_tokens",
        count,
    )


def _plain(message: Message, model: str) -> dict[str, Any]:
    # vLLM hands the role "developer" to the template as "system", and joins text parts with a line break.
    role = "system" if message.role == "developer" else message.role
    content = message.content
    if isinstance(content, list):
        content = "\n".join(_part_text(part, model) for part in content)
    calls = [call.model_dump() for call in message.tool_calls or ()]
    return {"role": role, "content": content or "", "tool_calls": calls}


def _part_text(part: dict[str, Any], model: str) -> str:
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in {"image_url", "input_audio", "audio_url", "video_url", "file"}:
        raise bad_request(f"{model} is not a multimodal model")
    raise bad_request(f"Unknown part type: {kind}")


def _normal_tool(tool: dict[str, Any]) -> dict[str, Any]:
    # The order and the nulls of vLLM's own dump of a tool, which is what its chat template sees.
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        location = ("body", "tools", 0, "function", "name")
        raise invalid_body([{"type": "missing", "loc": location, "msg": "Field required", "input": tool}])
    known = {name: function.get(name) for name in ("name", "description", "parameters")}
    extra = {name: value for name, value in function.items() if name not in known}
    return {"type": tool.get("type", "function"), "function": known | extra}
