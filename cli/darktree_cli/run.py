"""One run of the platform: start what was planned, make the demo customer, serve until a signal, stop in order."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import typer

from darktree_billing.client import AdminClient
from darktree_cli import demo, migrations, scraping
from darktree_cli.platform import Plan, Process, Stage
from darktree_cli.probes import Probes
from darktree_cli.processes import Supervisor
from darktree_cli.state import DataDir, PlatformRecord, write_private
from darktree_kit import clock
from darktree_kit.version import VERSION

Say = Callable[[str], None]


class Run:
    """One run of a plan in a claimed data directory."""

    def __init__(
        self, planned: Plan, data: DataDir, ready_file: Path | None, say: Say, started_at: float
    ) -> None:
        self._plan = planned
        self._data = data
        self._ready_file = ready_file
        self._say = say
        self._started_at = started_at
        self._secrets = data.secrets()
        self._supervisor: Supervisor

    async def until_stopped(self) -> None:
        """Start everything, serve until a signal asks to stop, and stop everything.

        Raises StartFailed, MigrationFailed, and ApiError when the demo customer cannot be made.
        """
        asked = asyncio.Event()
        async with AsyncExitStack() as stack:
            probes = await stack.enter_async_context(Probes(self._plan.database_url))
            self._supervisor = Supervisor(self._data.logs, probes.answers, self._say, self._publish)
            stack.push_async_callback(self._down)
            self._listen_for_signals(asked)
            starting = asyncio.create_task(self._up(), name="starting")
            stopping = asyncio.create_task(asked.wait(), name="stopping")
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await stopping
            else:
                starting.cancel()
                await asyncio.wait({starting})

    async def _up(self) -> None:
        self._data.lanes_file.write_text(self._plan.lanes_document)
        self._data.scraped.write_text(scraping.targets(self._plan.processes))
        # Engines take the longest and need nothing, so they start beside the database.
        self._start(Stage.DATABASE, Stage.ENGINE, Stage.STRIPE)
        await self._until_ready(Stage.DATABASE)
        self._say("migrating the database")
        await asyncio.to_thread(migrations.migrate, self._plan.database_url, self._secrets.role_passwords())
        self._start(Stage.SEALER, Stage.LEDGER, Stage.BILLING, Stage.GATEWAY)
        await self._until_ready(*(stage for stage in Stage if stage is not Stage.DATABASE))
        key = await self._demo_key()
        seconds = clock.monotonic() - self._started_at
        typer.echo(demo.welcome(self._plan, key, self._data.mailbox, seconds))
        if self._ready_file is not None:  # last: who waits for it finds all that was printed
            self._write_ready_file(self._ready_file, key)

    async def _down(self) -> None:
        self._say("stopping (Ctrl-C again kills)")
        if self._ready_file is not None:
            self._ready_file.unlink(missing_ok=True)
        await self._supervisor.stop()
        self._data.withdraw()
        self._say("stopped")

    def _start(self, *stages: Stage) -> None:
        for process in self._planned(*stages):
            self._supervisor.start(process)

    async def _until_ready(self, *stages: Stage) -> None:
        async def ready(process: Process) -> None:
            await self._supervisor.until_ready(process.name)
            self._say(f"{process.name} is ready")

        await asyncio.gather(*(ready(process) for process in self._planned(*stages)))

    def _planned(self, *stages: Stage) -> list[Process]:
        return [process for process in self._plan.processes if process.stage in stages]

    async def _demo_key(self) -> str:
        admin = AdminClient(self._plan.billing_url, self._secrets.admin_token)
        try:
            return await demo.ensure(admin, self._data)
        finally:
            await admin.close()

    def _listen_for_signals(self, asked: asyncio.Event) -> None:
        def on_signal() -> None:
            if asked.is_set():
                self._say("killing everything")
                self._supervisor.kill()
            asked.set()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, on_signal)

    def _publish(self) -> None:
        record = PlatformRecord(
            version=VERSION,
            supervisor_pid=os.getpid(),
            base_url=self._plan.base_url,
            admin_url=self._plan.billing_url,
            admin_token=self._secrets.admin_token,
            database_url=self._plan.database_url,
            lanes_file=str(self._data.lanes_file),
            journal_dir=str(self._data.journal),
            processes=self._supervisor.records(),
        )
        self._data.publish(record)

    def _write_ready_file(self, path: Path, key: str) -> None:
        content = {
            "base_url": self._plan.base_url,
            "api_key": key,
            "customer_id": demo.CUSTOMER_ID,
            "admin_url": self._plan.billing_url,
            "admin_token": self._secrets.admin_token,
            "database_url": self._plan.database_url,
            "console_url": self._plan.console_url,
            "mail_file": str(self._data.mailbox),
            "stripe_url": self._plan.stripe_url,
        }
        write_private(path, content)
