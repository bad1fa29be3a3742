"""The questions put to a real vLLM, and the script that writes down its answers in `recorded/`.

    .venv/bin/python tests/vllm/record.py http://127.0.0.1:8000

The model must be the tiny one, served as `tiny` with a context of 1,024 tokens (see `conftest.py`). Ids, times and the
fingerprint are replaced, so that two recordings of one version are the same but for the random text.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import httpx

RECORDED = Path(__file__).parent / "recorded"
TIMEOUT_SECONDS = 60
CONTEXT_LENGTH = 1024

HELLO = [{"role": "user", "content": "hello"}]
BOTH = {"include_usage": True, "continuous_usage_stats": True}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": "x<y'&é"}, "strict": True}}
CALL = {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}

Case = dict[str, Any]


def chat(name: str, **fields: Any) -> Case:
    """A chat request of four tokens, unless `fields` say otherwise. A field that is `...` is left out."""
    return post(name, "/v1/chat/completions", {"messages": HELLO} | fields)


def completion(name: str, **fields: Any) -> Case:
    return post(name, "/v1/completions", {"prompt": "hello"} | fields)


def post(name: str, path: str, fields: dict[str, Any]) -> Case:
    body = {"model": "tiny", "max_tokens": 4, "ignore_eos": True} | fields
    return {
        "name": name,
        "path": path,
        "body": {key: value for key, value in body.items() if value is not ...},
    }


def ask(name: str, path: str, **body: Any) -> Case:
    return {"name": name, "path": path, "body": body}


def raw(
    name: str, text: str, content_type: str = "application/json", path: str = "/v1/chat/completions"
) -> Case:
    return {"name": name, "path": path, "raw": text, "content_type": content_type}


CASES: dict[str, list[Case]] = {
    "chat": [
        chat("plain"),
        chat("three choices", n=3),
        chat("no model named", model=...),
        chat("max_completion_tokens wins", max_completion_tokens=2, max_tokens=9),
        chat("numbers as text", max_tokens="2"),
        chat("unknown field", no_such_field=1),
        chat("unknown role", messages=[{"role": "wizard", "content": "x"}]),
        chat("developer is system", messages=[{"role": "developer", "content": "é"}]),
        chat("no content", messages=[{"role": "user"}]),
        chat("content in parts", messages=[{"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]}]),
        chat("special tokens in the text", messages=[{"role": "user", "content": "a<|im_end|>b<|endoftext|>"}]),
        chat("tools that may not be called", tools=[TOOL], tool_choice="none"),
        chat("tool calls", messages=[*HELLO, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool"}]),
        chat("continue the answer", messages=[*HELLO, {"role": "assistant", "content": "hi"}],
             add_generation_prompt=False, continue_final_message=True),
        chat("log probabilities", logprobs=True),
        chat("log probabilities with alternatives", logprobs=True, top_logprobs=2),
        chat("fits exactly", messages=[{"role": "user", "content": "a" * 1001}]),
        chat("cut down to the context", messages=[{"role": "user", "content": "a" * 1003}]),
    ],
    "chat_streams": [
        chat("plain", stream=True),
        chat("usage at the end", stream=True, stream_options={"include_usage": True}),
        chat("usage in every chunk", stream=True, stream_options=BOTH),
        chat("continuous without include", stream=True, stream_options={"continuous_usage_stats": True}),
        chat("unknown stream option", stream=True, stream_options={"foo": 1}),
        chat("three choices", stream=True, n=3, stream_options=BOTH),
        chat("log probabilities", stream=True, logprobs=True, top_logprobs=1, stream_options=BOTH),
        chat("stop string that never comes", stream=True, stop=["\u00e9\u00e9\u00e9"], stream_options=BOTH),
    ],
    "completions": [
        completion("plain"),
        completion("default length", max_tokens=...),
        completion("two prompts of two choices", prompt=["a", "bcd"], n=2),
        completion("ids", prompt=[104, 105]),
        completion("lists of ids", prompt=[[104], [105, 258, 106]]),
        completion("echo", echo=True),
        completion("echo and nothing more", echo=True, max_tokens=0),
        completion("log probabilities", logprobs=2),
        completion("log probability of the token only", logprobs=0),
    ],
    "completion_streams": [
        completion("plain", stream=True),
        completion("usage at the end", stream=True, stream_options={"include_usage": True}),
        completion("usage in every chunk", stream=True, stream_options=BOTH),
        completion("two prompts", stream=True, prompt=["a", "bcd"], stream_options=BOTH),
        completion("echo", stream=True, echo=True, stream_options=BOTH),
        completion("log probabilities", stream=True, logprobs=0),
    ],
    "tokenize": [
        ask("a conversation", "/tokenize", model="tiny", messages=HELLO),
        ask("without the generation prompt", "/tokenize", messages=HELLO, add_generation_prompt=False),
        ask("tools", "/tokenize", messages=HELLO, tools=[TOOL]),
        ask("tools after a system prompt", "/tokenize",
            messages=[{"role": "system", "content": "S"}, *HELLO], tools=[TOOL]),
        ask("tool calls", "/tokenize", messages=[*HELLO, {"role": "assistant", "tool_calls": [CALL]}]),
        ask("a prompt", "/tokenize", prompt="héllo<|im_end|> 😀\n", return_token_strs=True),
        ask("an empty prompt", "/tokenize", prompt=""),
        ask("a prompt longer than the context", "/tokenize", prompt="a" * 1100),
        ask("ids to text", "/detokenize", model="tiny", tokens=[104, 195, 169, 258]),
        ask("unknown ids to text", "/detokenize", tokens=[99999]),
    ],
    "models": [{"name": "models", "path": "/v1/models"}, {"name": "version", "path": "/version"}],
    "errors": [
        raw("bad JSON", '{"a":'),
        raw("no JSON at all", "nope", path="/v1/completions"),
        raw("empty body", ""),
        raw("null", "null"),
        raw("a list", "[1]"),
        raw("nested without end", "[" * 2000),
        raw("wrong content type", '{"model":"tiny"}', "text/plain"),
        raw("half a surrogate pair", '{"prompt":"\\ud800"}', path="/tokenize"),
        raw("not a number", '{"prompt":"x","temperature":NaN}', path="/v1/completions"),
        {"name": "unknown path", "path": "/nope"},
        {"name": "wrong method", "path": "/v1/chat/completions"},
        chat("unknown model", model="x"),
        completion("unknown model in completions", model="x"),
        ask("unknown model in tokenize", "/tokenize", model="x", prompt="hi"),
        chat("model of a wrong type", model=3),
        chat("no messages", messages=...),
        chat("empty messages", messages=[]),
        chat("messages of a wrong type", messages="hi"),
        chat("an image", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        chat("longer than the context", messages=[{"role": "user", "content": "a" * 2000}]),
        chat("far longer than the context", messages=[{"role": "user", "content": "a" * 14_000}]),
        chat("no room for one token", messages=[{"role": "user", "content": "a" * 1005}]),
        completion("prompt longer than the context", prompt="a" * 2000),
        completion("ids longer than the context", prompt=[97] * 2000),
        completion("one of two prompts too long", prompt=["a", "a" * 2000]),
        chat("max_tokens beyond the context", max_tokens=100_000),
        chat("max_completion_tokens beyond the context", max_completion_tokens=100_000),
        chat("max_tokens 0", max_tokens=0),
        chat("max_tokens below 0", max_tokens=-1),
        chat("max_tokens of a wrong type", max_tokens="abc"),
        chat("max_tokens with a fraction", max_tokens=1.5),
        chat("n 0", n=0),
        chat("n below 0", n=-1),
        chat("n too large", n=20_000),
        chat("n of a wrong type", n="x"),
        chat("two errors", n="x", max_tokens="y"),
        completion("n null in completions", n=None),
        chat("two greedy choices", n=2, temperature=0),
        chat("stream_options without stream", stream_options={"include_usage": True}),
        chat("stream_options of a wrong type", stream=True, stream_options="x"),
        chat("include_usage of a wrong type", stream=True, stream_options={"include_usage": "x"}),
        chat("stream of a wrong type", stream="x"),
        chat("temperature below 0", temperature=-1),
        chat("temperature too high", temperature=3),
        chat("top_p 0", top_p=0),
        chat("presence_penalty too large", presence_penalty=3),
        chat("empty stop", stop=""),
        chat("stop of a wrong type", stop=3),
        chat("seed too large", seed=2**70),
        chat("top_logprobs without logprobs", top_logprobs=2),
        chat("too many logprobs", logprobs=True, top_logprobs=50),
        chat("min_tokens beyond max_tokens", min_tokens=10),
        chat("min_tokens below 0", min_tokens=-1),
        chat("empty tools", tools=[]),
        chat("tools that may be called", tools=[TOOL]),
        completion("no prompt", prompt=...),
        completion("empty prompt", prompt=""),
        completion("no prompts", prompt=[]),
        completion("empty prompt in a list", prompt=[""]),
        completion("prompt of a wrong type", prompt=3),
        completion("id out of the vocabulary", prompt=[9999]),
        completion("suffix", suffix="x"),
    ],
}  # fmt: skip


def put(client: httpx.Client, case: Case) -> Case:
    """Put one question; the answer is `answer` when it is one JSON document, `events` when it is a stream."""
    if "raw" in case:
        headers = {"content-type": case["content_type"]}
        response = client.post(case["path"], content=case["raw"].encode(), headers=headers)
    elif "body" in case:
        response = client.post(case["path"], json=case["body"])
    else:
        response = client.get(case["path"])
    content_type = response.headers.get("content-type", "")
    told: Case = {"status": response.status_code, "answer_type": content_type}
    if content_type.startswith("text/event-stream"):
        told["events"] = response.text.split("\n\n")
    else:
        told["answer"] = response.json()
    return told


def normalised(told: Case) -> Case:
    """The answer without what differs from one call to the next."""
    text = json.dumps(told)
    for pattern, replacement in (
        (r'(\\?"id\\?": ?\\?")(chatcmpl|cmpl|modelperm)-[0-9a-f]+', r"\1\2-0"),
        (r'(\\?"created\\?": ?)\d+', r"\g<1>0"),
        (r'(\\?"root\\?": ?\\?")[^"\\]*', r"\1tiny"),
        (r"vllm-([0-9.]+)-\w+", r"vllm-\1-0"),
    ):
        text = re.sub(pattern, replacement, text)
    loaded: Case = json.loads(text)
    return loaded


def main() -> int:
    RECORDED.mkdir(exist_ok=True)
    with httpx.Client(base_url=sys.argv[1], timeout=TIMEOUT_SECONDS) as client:
        for group, cases in CASES.items():
            told = [case | normalised(put(client, case)) for case in cases]
            lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in told)
            (RECORDED / f"{group}.json").write_text(f"[\n{lines}\n]\n")
        names = sorted(set(re.findall(r"^(vllm:\w+)\{", client.get("/metrics").text, re.MULTILINE)))
        (RECORDED / "metrics.json").write_text(json.dumps(names, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
