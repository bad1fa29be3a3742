"""A log line is one JSON object with the request's id, and settings never show a secret."""

import json
import logging

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


def test_printing_settings_shows_no_secret() -> None:
    settings = DatabaseSettings(database_url=SecretStr("postgresql://role:password@host/db"))
    assert "password" not in repr(settings)
    assert "password" not in str(settings.model_dump())
