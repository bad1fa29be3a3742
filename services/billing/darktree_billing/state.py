"""What endpoints take from the application: the ledger, the plans in use, the peppers, the key of the books, the inbox.

Async, though nothing is awaited: FastAPI would run a plain function in a thread.
"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request

from darktree_billing.keys import Peppers
from darktree_billing.plans import PlansFile
from darktree_kit.notes import Signer
from darktree_ledger.client import LedgerClient


async def _ledger(request: Request) -> LedgerClient:
    ledger: LedgerClient = request.app.state.ledger
    return ledger


async def _plans_file(request: Request) -> PlansFile:
    plans_file: PlansFile = request.app.state.plans_file
    return plans_file


async def _peppers(request: Request) -> Peppers:
    peppers: Peppers = request.app.state.peppers
    return peppers


async def _books_key(request: Request) -> Signer | None:
    signer: Signer | None = request.app.state.books_key
    return signer


async def _then_wake(request: Request) -> AsyncIterator[None]:
    yield
    if request.app.state.inbox is not None:
        request.app.state.inbox.wake()


TheLedger = Annotated[LedgerClient, Depends(_ledger)]
ThePlansFile = Annotated[PlansFile, Depends(_plans_file)]
ThePeppers = Annotated[Peppers, Depends(_peppers)]
TheBooksKey = Annotated[Signer | None, Depends(_books_key)]
ThenWakeTheInbox = Depends(_then_wake, scope="function")
"""For a route's `dependencies`, which end after its parameters: when the session's transaction is committed. Woken
earlier, the inbox would find nothing and look again seconds later."""
