"""What is read on a request's path, for a statement or a proof, is read by indexes, however much there is."""

import asyncio
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest

ENTRIES, CUSTOMERS = 100_000, 200
OTHER_SESSIONS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "scale.py"
    spec = importlib.util.spec_from_file_location("scale_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def filled(scale: ModuleType, make_database: Callable[[], Any]) -> str:
    """A year of 100,000 entries, of which eleven months are closed."""
    url: str = make_database().admin_url
    scale.fill(url, ENTRIES, CUSTOMERS)
    scale.close_months(url)
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute(OTHER_SESSIONS).fetchone():
            pass  # what a session has scanned may be counted as late as it ends
    return url


def test_no_reading_path_reads_a_table_from_end_to_end(scale: ModuleType, filled: str) -> None:
    measured = asyncio.run(scale.measure(filled, scale.paths(ENTRIES // CUSTOMERS, ENTRIES)))
    assert len(measured) > 20
    assert {row.name: row.scans for row in measured if row.scans} == {}


def test_what_reads_a_month_reads_only_that_month(scale: ModuleType, filled: str) -> None:
    measured = {row.name: set(row.scans) for row in asyncio.run(scale.measure(filled, scale.month_paths()))}
    lines = measured.pop("lines of a month that are no usage")
    assert lines <= {"entry_2026_10"}
    assert all(scans <= {"entry_2026_11"} for scans in measured.values()), measured
