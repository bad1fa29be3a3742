"""What a page costs before the browser has it: calls of the ledger, and statements in both databases.

Time depends on the machine; these do not, and time follows from them. `make bench ARGS="--only console"` measures time.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from darktree_kit import logs
from darktree_kit.ids import uuid7

EMAIL = "ada@costs.test"
# Of each page at most: calls of the ledger, statements of billing (the session is one), statements of the ledger.
BOUNDS = {
    "/console": (2, 3, 3),
    "/console/usage": (2, 2, 3),
    "/console/ledger": (1, 2, 1),
    "/console/ledger?kind=grant": (1, 2, 1),
    "/console/ledger/2": (1, 2, 1),
    "/console/keys": (0, 2, 0),
    "/console/buy": (0, 3, 0),
    "/console/statements": (2, 2, 2),
    "/console/statements/2026-11": (6, 3, 10),
    "/console/cap": (2, 2, 3),
    "/console/budget": (0, 1, 0),
    "/console/dedicated": (0, 2, 0),
    "/console/members": (0, 2, 0),
}


class Costs(logging.Handler):
    """Counts what is done while a request is answered, by its id, which the ledger is told too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str | None] = Counter()
        self.statements: Counter[tuple[str | None, str]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "route", "").startswith(("/v1/", "/log/")):
            self.calls[logs.request_id.get()] += 1

    def count_statement(self, connection: Any, *_: Any) -> None:
        role = connection.connection.driver_connection.info.user
        self.statements[logs.request_id.get(), role] += 1


@pytest.fixture
def costs() -> Iterator[Costs]:
    counting = Costs()
    log = logging.getLogger("darktree.http")
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(counting)
    event.listen(Engine, "before_cursor_execute", counting.count_statement)
    yield counting
    event.remove(Engine, "before_cursor_execute", counting.count_statement)
    log.removeHandler(counting)
    log.setLevel(level)


@pytest.fixture(scope="module")
def ada(platform: Any) -> Any:
    """Somebody with a month behind them: of most things there are several."""
    platform.clock("2026-11-20 09:00Z")
    ada = platform.sign_up(EMAIL)
    customer = platform.customer_of(EMAIL)
    for name in ("one", "two"):
        assert ada.submit("/console/keys", name=name).status_code == 201
    keys = [row[0] for row in platform.sql("SELECT id FROM billing.api_key WHERE customer_id = %s", customer)]
    platform.grant(customer, 100)
    platform.set_cap(customer, 7_000)
    for day in range(20, 24):
        platform.clock(f"2026-11-{day} 10:00Z")
        for key in keys:
            assert platform.use(customer, key, 1_000) == "done"
    platform.seal()
    return ada


@pytest.mark.parametrize("path", BOUNDS)
def test_a_page_asks_no_more_of_the_ledger_and_the_databases_than_it_has_to(
    path: str, ada: Any, costs: Costs
) -> None:
    request_id = f"req_{uuid7().hex}"
    answer = ada.get(path, headers={"X-Request-Id": request_id})
    assert answer.status_code == 200
    assert answer.headers["X-Request-Id"] == request_id
    billing, ledger = (costs.statements[request_id, f"darktree_{name}"] for name in ("billing", "ledger"))
    seen = (costs.calls[request_id], billing, ledger)
    print(path, seen)
    assert seen[1] > 0
    assert all(found <= most for found, most in zip(seen, BOUNDS[path], strict=True)), (seen, BOUNDS[path])
