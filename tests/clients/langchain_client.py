"""Drives a gateway with LangChain's own OpenAI classes and prints, as JSON, what they understood.

BASE_URL, API_KEY, MODEL, EMBEDDER and POOR_KEY (a customer without credit) come from the environment.
"""

import asyncio
import json
import os
from typing import Any

import openai
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

BASE_URL, MODEL = os.environ["BASE_URL"], os.environ["MODEL"]
QUESTION = "Which city?"


class Place(BaseModel):
    """Where it is."""

    city: str


def _weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"Dry in {city}."


weather: Any = tool("weather")(_weather)


def chat(**options: Any) -> ChatOpenAI:
    return ChatOpenAI(**({"model": MODEL, "base_url": BASE_URL, "api_key": os.environ["API_KEY"]} | options))


def of(message: Any) -> dict[str, Any]:
    return {
        "text": message.text,
        "usage": message.usage_metadata,
        "calls": getattr(message, "tool_calls", []),
    }


def streamed(model: ChatOpenAI) -> dict[str, Any]:
    whole = None
    for chunk in model.stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    return of(whole)


async def awaited(model: ChatOpenAI) -> dict[str, Any]:
    whole = None
    async for chunk in model.astream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    return {"plain": of(await model.ainvoke(QUESTION)), "streamed": of(whole)}


def with_a_tool(model: ChatOpenAI) -> dict[str, Any]:
    asked: list[Any] = [HumanMessage(QUESTION)]
    called: AIMessage = model.bind_tools([weather]).invoke(asked)
    (call,) = called.tool_calls
    result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    answer = model.bind_tools([weather]).invoke([*asked, called, result])
    return {"call": of(called), "answer": of(answer)}


def refused(model: ChatOpenAI) -> dict[str, Any]:
    try:
        model.invoke(QUESTION)
    except openai.APIStatusError as error:
        names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("openai")]
        return {"name": names[0], "status": error.status_code, "code": error.code}
    raise AssertionError("not refused")


def main() -> None:
    model, responses = chat(stream_usage=True), chat(use_responses_api=True)
    embeddings: Any = OpenAIEmbeddings(
        model=os.environ["EMBEDDER"],
        base_url=BASE_URL,
        api_key=os.environ["API_KEY"],
        check_embedding_ctx_length=False,  # else it fetches OpenAI's own tokenizer
    )
    told = {
        "version": openai.__version__,
        "plain": of(model.invoke(QUESTION)),
        "streamed": streamed(model),
        "async": asyncio.run(awaited(model)),
        "structured": model.with_structured_output(Place).invoke(QUESTION).model_dump(),
        "tool": with_a_tool(model),
        "repeated": of(model.invoke("fail once, LangChain")),
        "responses": of(responses.invoke(QUESTION)),
        "responses_streamed": streamed(responses),
        "responses_structured": responses.with_structured_output(Place).invoke(QUESTION).model_dump(),
        "responses_tool": with_a_tool(responses),
        "vectors": [len(vector) for vector in embeddings.embed_documents(["a", "bc"])],
        "async_vector": len(asyncio.run(embeddings.aembed_query("abc"))),
        "refusals": {
            "key": refused(chat(api_key="sk-nobody")),
            "credit": refused(chat(api_key=os.environ["POOR_KEY"])),
            "model": refused(chat(model="nothing")),
        },
    }
    print(json.dumps(told))


main()
