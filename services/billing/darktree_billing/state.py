"""What endpoints take from the application: the ledger, the plans in use, the peppers, the key of the books.

Async, though nothing is awaited: FastAPI would run a plain function in a thread.
"""

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


TheLedger = Annotated[LedgerClient, Depends(_ledger)]
ThePlansFile = Annotated[PlansFile, Depends(_plans_file)]
ThePeppers = Annotated[Peppers, Depends(_peppers)]
TheBooksKey = Annotated[Signer | None, Depends(_books_key)]
