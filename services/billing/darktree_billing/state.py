"""What endpoints take from the application: the ledger, the plans in use, the peppers."""

from typing import Annotated

from fastapi import Depends, Request

from darktree_billing.keys import Peppers
from darktree_billing.plans import PlansFile
from darktree_ledger.client import LedgerClient


def _ledger(request: Request) -> LedgerClient:
    ledger: LedgerClient = request.app.state.ledger
    return ledger


def _plans_file(request: Request) -> PlansFile:
    plans_file: PlansFile = request.app.state.plans_file
    return plans_file


def _peppers(request: Request) -> Peppers:
    peppers: Peppers = request.app.state.peppers
    return peppers


TheLedger = Annotated[LedgerClient, Depends(_ledger)]
ThePlansFile = Annotated[PlansFile, Depends(_plans_file)]
ThePeppers = Annotated[Peppers, Depends(_peppers)]
