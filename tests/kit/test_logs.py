"""A log line is one JSON object with the request's id, and settings never show a secret."""

import asyncio
import io
import json
import logging
import subprocess
import sys

from pydantic import SecretStr

from darktree_kit import logs
from darktree_kit.settings import DatabaseSettings


def test_a_line_has_its_fields_its_service_and_the_request_id() -> None:
    record = logging.LogRecord("darktree.http", logging.INFO, "", 0, "request", None, None)
    record.__dict__.update({"status": 200, "route": "/v1/models"})
    token = logs.request_id.set("req_1")
    try:
        line = json.loads(logs.JsonFormatter("gateway").format(record))
    finally:
        logs.request_id.reset(token)
    assert {
        "service": "gateway",
        "message": "request",
        "level": "info",
        "request_id": "req_1",
    }.items() <= line.items()
    assert (line["status"], line["route"]) == (200, "/v1/models")


def test_an_exception_is_one_line_too() -> None:
    try:
        raise ValueError("broken\nin two")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", None, (type(error), error, None))
    formatted = logs.JsonFormatter("ledger").format(record)
    assert "\n" not in formatted
    assert "broken" in json.loads(formatted)["exception"]


async def test_lines_of_one_turn_of_the_loop_are_one_write_and_what_is_wrong_goes_at_once() -> None:
    written: list[str] = []
    stream = io.StringIO()
    stream.write = lambda text: written.append(text) or len(text)  # type: ignore[method-assign, func-returns-value]
    log = logging.Logger("x")
    log.addHandler(logs.LineHandler(stream))
    log.info("one")
    log.info("two")
    assert written == []
    await asyncio.sleep(0)
    assert written == ["one\ntwo\n"]
    log.info("three")
    log.error("wrong")
    assert written[1:] == ["three\nwrong\n"]
    await asyncio.to_thread(log.info, "from a thread without a loop")
    assert written[2:] == ["from a thread without a loop\n"]


def test_lines_that_wait_are_written_when_the_process_ends() -> None:
    code = (
        "import asyncio, logging\n"
        "from darktree_kit import logs\n"
        "logs.configure('gateway')\n"
        "async def main():\n"
        "    logging.getLogger('x').info('the last')\n"
        "    raise SystemExit(3)\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert json.loads(ended.stderr)["message"] == "the last"


def test_an_event_is_the_line_that_a_record_of_it_would_be() -> None:
    code = (
        "import logging\n"
        "from darktree_kit import logs\n"
        "logs.configure('gateway')\n"
        "log = logging.getLogger('darktree.http')\n"
        "logs.request_id.set('req_1')\n"
        "log.info('request', extra={'status': 200, 'lane': 'a'})\n"
        "logs.event(log, 'request', {'status': 200, 'lane': 'a'})\n"
        "log.setLevel('WARNING')\n"
        "logs.event(log, 'request', {'status': 201})\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    record, event = map(json.loads, told.splitlines())
    assert abs(event.pop("ts") - record.pop("ts")) < 1
    assert event == record


def test_printing_settings_shows_no_secret() -> None:
    settings = DatabaseSettings(database_url=SecretStr("postgresql://role:password@host/db"))
    assert "password" not in repr(settings)
    assert "password" not in str(settings.model_dump())
