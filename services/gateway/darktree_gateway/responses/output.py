"""The output of a response as it grows, and the events that tell of it: OpenAI's, in vLLM's order."""

from collections.abc import Callable, Iterator
from typing import Any

from darktree_kit.ids import uuid7

Event = dict[str, Any]


class Output:
    """Items in order; the last one is open until another kind of text, another call, or the end comes."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._open: _Text | _Call | None = None

    def take(self, delta: dict[str, Any], logprobs: dict[str, Any] | None) -> Iterator[Event]:
        """Take what a chat's event adds."""
        if reasoning := delta.get("reasoning") or delta.get("reasoning_content"):
            yield from self._to(_Text.reasoning)
            yield from self._added(reasoning, [])
        if content := delta.get("content"):
            yield from self._to(_Text.message)
            yield from self._added(content, (logprobs or {}).get("content") or [])
        for piece in delta.get("tool_calls") or ():
            function = piece.get("function") or {}
            index = piece["index"]
            if not isinstance(self._open, _Call) or self._open.index != index:
                yield from self.close("completed")
                yield from self._opened(_Call(index, piece.get("id"), function.get("name") or ""))
            yield from self._added(function.get("arguments") or "", [])

    def close(self, status: str) -> Iterator[Event]:
        """End the open item, if there is one."""
        if self._open is None:
            return
        place = {"output_index": len(self.items)}
        for event in self._open.closing():
            yield event | place
        item = self._open.item(status)
        self.items.append(item)
        self._open = None
        yield {"type": "response.output_item.done", "item": item} | place

    def _to(self, make: Callable[[], "_Text"]) -> Iterator[Event]:
        wanted = make()
        if self._open is None or self._open.kind != wanted.kind:
            yield from self.close("completed")
            yield from self._opened(wanted)

    def _opened(self, opened: "_Text | _Call") -> Iterator[Event]:
        self._open = opened
        place = {"output_index": len(self.items)}
        yield {"type": "response.output_item.added", "item": opened.item("in_progress", empty=True)} | place
        for event in opened.opening():
            yield event | place

    def _added(self, text: str, logprobs: list[Any]) -> Iterator[Event]:
        assert self._open is not None
        if text:
            yield self._open.add(text, logprobs) | {"output_index": len(self.items)}


class _Text:
    """A message, or what was thought before it: one part of text."""

    def __init__(self, kind: str, part_type: str, event: str) -> None:
        self.kind = kind
        self._id = f"{'msg' if kind == 'message' else 'rs'}_{uuid7().hex}"
        self._part_type = part_type
        self._event = event
        self._texts: list[str] = []
        self._logprobs: list[Any] = []

    @classmethod
    def message(cls) -> "_Text":
        return cls("message", "output_text", "response.output_text")

    @classmethod
    def reasoning(cls) -> "_Text":
        return cls("reasoning", "reasoning_text", "response.reasoning_text")

    def opening(self) -> Iterator[Event]:
        yield self._of_part("response.content_part.added", part=self._part(""))

    def add(self, text: str, logprobs: list[Any]) -> Event:
        self._texts.append(text)
        self._logprobs += logprobs
        return self._of_part(f"{self._event}.delta", delta=text, **self._with_logprobs(logprobs))

    def closing(self) -> Iterator[Event]:
        text = "".join(self._texts)
        yield self._of_part(f"{self._event}.done", text=text, **self._with_logprobs(self._logprobs))
        yield self._of_part("response.content_part.done", part=self._part(text))

    def item(self, status: str, *, empty: bool = False) -> dict[str, Any]:
        content = [] if empty else [self._part("".join(self._texts))]
        if self.kind == "reasoning":
            own: dict[str, Any] = {"summary": [], "content": content, "encrypted_content": None}
        else:
            own = {"role": "assistant", "content": content}
        return {"id": self._id, "type": self.kind, "status": status} | own

    def _part(self, text: str) -> dict[str, Any]:
        part: dict[str, Any] = {"type": self._part_type, "text": text}
        if self.kind == "message":
            part |= {"annotations": [], "logprobs": self._logprobs}
        return part

    def _with_logprobs(self, logprobs: list[Any]) -> dict[str, Any]:
        return {"logprobs": logprobs} if self.kind == "message" else {}

    def _of_part(self, event: str, **members: Any) -> Event:
        return {"type": event, "item_id": self._id, "content_index": 0} | members


class _Call:
    """A function that is to be called."""

    kind = "function_call"

    def __init__(self, index: int, call_id: str | None, name: str) -> None:
        self.index = index
        self._id = f"fc_{uuid7().hex}"
        self._call_id = call_id or f"call_{uuid7().hex}"
        self._name = name
        self._arguments: list[str] = []

    def opening(self) -> Iterator[Event]:
        return iter(())

    def add(self, text: str, logprobs: list[Any]) -> Event:  # noqa: ARG002 (calls have none)
        self._arguments.append(text)
        return {"type": "response.function_call_arguments.delta", "item_id": self._id, "delta": text}

    def closing(self) -> Iterator[Event]:
        told = {"item_id": self._id, "name": self._name, "arguments": "".join(self._arguments)}
        yield {"type": "response.function_call_arguments.done"} | told

    def item(self, status: str, *, empty: bool = False) -> dict[str, Any]:
        arguments = "" if empty else "".join(self._arguments)
        own = {"call_id": self._call_id, "name": self._name, "arguments": arguments}
        return {"id": self._id, "type": self.kind, "status": status} | own
