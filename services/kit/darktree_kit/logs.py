"""Logs are JSON lines on standard error, one object a line, with the request's id on each.

No prompt, no answer and no secret ever reaches a log: callers pass named fields, never bodies.
"""

import asyncio
import logging
import sys
from contextlib import nullcontext
from contextvars import ContextVar
from typing import TextIO

import orjson

from darktree_kit import clock

MAX_WAITING_LINES = 1_000

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object: ts, level, service, logger, message, request_id, and its extra fields."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return self.line(record.created, record.levelname.lower(), record.name, record.getMessage(), fields)

    def line(self, at: float, level: str, logger: str, message: str, fields: dict[str, object]) -> str:
        """Return the line of what happened at an instant, in Unix seconds."""
        line: dict[str, object] = {
            "ts": round(at, 6),
            "level": level,
            "service": self.service,
            "logger": logger,
            "message": message,
        }
        if (current := request_id.get()) is not None:
            line["request_id"] = current
        line |= fields
        return orjson.dumps(line, default=str).decode()


class LineHandler(logging.Handler):
    """Writes lines to a stream: those of one turn of the event loop together, and what is wrong at once.

    A write for each request costs more than its line does.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.add(self.format(record), at_once=record.levelno >= logging.WARNING)
        except Exception:
            self.handleError(record)

    def add(self, line: str, *, at_once: bool = False) -> None:
        """Write a line, with the others of this turn unless it shall be at once."""
        self._lines.append(line + "\n")
        loop = _running_loop()
        if loop is None or at_once or len(self._lines) >= MAX_WAITING_LINES:
            self.flush()
        elif len(self._lines) == 1:
            loop.call_soon(self.flush)

    def flush(self) -> None:
        with self.lock or nullcontext():
            lines, self._lines = self._lines, []
            if lines:
                self._stream.write("".join(lines))
                self._stream.flush()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:  # none in this thread
        return None


def flush() -> None:
    """Write every line that still waits for its turn's end."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def event(log: logging.Logger, message: str, fields: dict[str, object]) -> None:
    """Log named fields at level INFO, by the shortest way there is: for lines at every request."""
    if not log.isEnabledFor(logging.INFO):
        return
    if _output is not None:
        handler, formatter = _output
        handler.add(formatter.line(clock.unix_nanoseconds() / 1e9, "info", log.name, message, fields))
    else:
        record = logging.LogRecord(log.name, logging.INFO, "", 0, message, None, None)
        record.__dict__.update(fields)
        log.handle(record)


_output: tuple[LineHandler, JsonFormatter] | None = None  # of this process, once it is configured


def configure(service: str, level: str = "INFO") -> None:
    """Send every log line of this process to standard error as JSON."""
    global _output
    handler, formatter = LineHandler(sys.stderr), JsonFormatter(service)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    _output = handler, formatter
    for noisy in ("uvicorn.access", "aiohttp.access"):
        logging.getLogger(noisy).disabled = True
