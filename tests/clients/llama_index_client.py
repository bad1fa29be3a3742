"""Drives a gateway with LlamaIndex' own OpenAI classes and prints, as JSON, what they understood.

BASE_URL, API_KEY, MODEL, EMBEDDER and POOR_KEY (a customer without credit) come from the environment. Its class OpenAI
only knows the names of OpenAI's models; OpenAILike is the same for all others.
"""

import asyncio
import json
import os
from typing import Any

import openai
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai import OpenAI, OpenAIResponses
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

BASE_URL, MODEL = os.environ["BASE_URL"], os.environ["MODEL"]
MESSAGES = [ChatMessage(role="user", content="Which city?")]


class Place(BaseModel):
    """Where it is."""

    city: str


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"Dry in {city}."


def chat(**options: Any) -> Any:
    return OpenAI(**({"model": MODEL, "api_base": BASE_URL, "api_key": os.environ["API_KEY"]} | options))


def like(**options: Any) -> Any:
    known = {"is_chat_model": True, "is_function_calling_model": True, "context_window": 4096}
    return OpenAILike(
        **({"model": MODEL, "api_base": BASE_URL, "api_key": os.environ["API_KEY"]} | known | options)
    )


def usage_of(answer: Any) -> dict[str, int] | None:
    usage = getattr(answer.raw, "usage", None)
    return usage and {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}


def of(answer: Any) -> dict[str, Any]:
    return {"text": answer.message.content, "usage": usage_of(answer)}


def streamed(model: Any) -> dict[str, Any]:
    *_, last = model.stream_chat(MESSAGES)
    return of(last)


async def awaited(model: Any) -> dict[str, Any]:
    pieces = [piece async for piece in await model.astream_chat(MESSAGES)]
    return {"plain": of(await model.achat(MESSAGES)), "streamed": of(pieces[-1])}


def with_a_tool(model: Any) -> dict[str, Any]:
    tool = FunctionTool.from_defaults(weather)
    called = model.chat_with_tools([tool], chat_history=list(MESSAGES))
    (call,) = model.get_tool_calls_from_response(called)
    result = ChatMessage(
        role="tool", content=weather(**call.tool_kwargs), additional_kwargs={"tool_call_id": call.tool_id}
    )
    answer = model.chat_with_tools([tool], chat_history=[*MESSAGES, called.message, result])
    calls = [{"name": call.tool_name, "args": call.tool_kwargs, "id": call.tool_id}]
    return {"call": {"calls": calls, "usage": usage_of(called)}, "answer": of(answer)}


def refused(model: Any) -> dict[str, Any]:
    try:
        model.chat(MESSAGES)
    except openai.APIStatusError as error:
        names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("openai")]
        return {"name": names[0], "status": error.status_code, "code": error.code}
    raise AssertionError("not refused")


def main() -> None:
    model = chat()
    where = {"api_base": BASE_URL, "api_key": os.environ["API_KEY"]}
    embedding: Any = OpenAIEmbedding(model=os.environ["EMBEDDER"], **where)
    embedding_like: Any = OpenAILikeEmbedding(model_name=os.environ["EMBEDDER"], **where)
    responses: Any = OpenAIResponses(model=MODEL, **where)
    told = {
        "version": openai.__version__,
        "plain": of(model.chat(MESSAGES)),
        "streamed": streamed(model),
        "async": asyncio.run(awaited(chat())),
        "structured": model.as_structured_llm(Place).chat(MESSAGES).raw.model_dump(),
        "tool": with_a_tool(model),
        "repeated": of(model.chat([ChatMessage(role="user", content="fail once, LlamaIndex")])),
        "like": of(like().chat(MESSAGES)),
        "like_streamed": streamed(like()),
        "like_tool": with_a_tool(like()),
        "responses": responses.chat(MESSAGES).message.content,
        "responses_streamed": "".join(piece.delta or "" for piece in responses.stream_chat(MESSAGES)),
        "vectors_like": [len(vector) for vector in embedding_like.get_text_embedding_batch(["a", "bc"])],
        "vectors": [len(vector) for vector in embedding.get_text_embedding_batch(["a", "bc"])],
        "async_vector": len(asyncio.run(embedding.aget_text_embedding("abc"))),
        "refusals": {
            "key": refused(chat(api_key="sk-nobody")),
            "credit": refused(chat(api_key=os.environ["POOR_KEY"])),
            "model": refused(like(model="nothing")),
        },
    }
    print(json.dumps(told))


main()
