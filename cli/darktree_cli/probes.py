"""Asks a process whether it is ready: its health endpoint, or for the database a query."""

from types import TracebackType
from typing import Self

from darktree_cli.platform import Process, Stage
from darktree_kit.errors import ApiError
from darktree_kit.http import InternalClient

PROBE_TIMEOUT_SECONDS = 3.0


async def problem_of_url(url: str, path: str) -> str | None:
    """Return why an endpoint does not say that all is well, or None when it does."""
    client = InternalClient(url, "", service=url, timeout=PROBE_TIMEOUT_SECONDS)
    try:
        await client.call("GET", path)
    except ApiError as error:
        return error.message
    finally:
        await client.close()
    return None


async def problem_of_database(url: str) -> str | None:
    """Return why a database cannot be used, or None."""
    from darktree_kit.db import Database  # half a second, which no other command shall pay

    try:
        database = Database(url, pool_size=1)
    except ValueError as error:
        return str(error)
    try:
        await database.ping()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    finally:
        await database.close()
    return None


class Probes:
    """Probes for one run, which keep their connections."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._clients: dict[str, InternalClient] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients.values():
            await client.close()

    async def answers(self, process: Process) -> bool:
        """Say whether a process is ready."""
        if process.stage is Stage.DATABASE:
            return await problem_of_database(self._database_url) is None
        assert process.url is not None
        client = self._clients.get(process.url)
        if client is None:
            client = InternalClient(process.url, "", service=process.name, timeout=PROBE_TIMEOUT_SECONDS)
            self._clients[process.url] = client
        try:
            await client.call("GET", process.health_path)
        except ApiError:
            return False
        return True
