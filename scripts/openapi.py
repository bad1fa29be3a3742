"""Writes each service's OpenAPI description to docs/openapi/, as its own code gives it.

    python scripts/openapi.py [FOLDER]

A test compares the folder with what this writes.
"""

import json
import sys
from pathlib import Path
from typing import Any

from darktree_billing.app import make_app as make_billing
from darktree_billing.settings import Settings as BillingSettings
from darktree_gateway.app import make_app as make_gateway
from darktree_gateway.settings import Settings as GatewaySettings
from darktree_ledger.app import make_app as make_ledger
from darktree_ledger.settings import Settings as LedgerSettings

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "openapi"
# Nothing is connected to: an application describes itself before it starts.
NOWHERE = {
    "database_url": "postgresql://nowhere/",
    "ledger_url": "http://127.0.0.1:9",
    "billing_url": "http://127.0.0.1:9",
    "plans_file": ROOT / "examples" / "plans.yaml",
    "lanes_file": "lanes.yaml",
    "journal_dir": "journal",
} | dict.fromkeys(
    ("ledger_token", "gateway_token", "billing_token", "admin_token", "key_pepper"), "only-to-describe-itself"
)


def descriptions() -> dict[str, dict[str, Any]]:
    """Return each service's OpenAPI document."""
    return {
        "ledger": make_ledger(LedgerSettings.model_validate(NOWHERE)).openapi(),
        "billing": make_billing(BillingSettings.model_validate(NOWHERE)).openapi(),
        "gateway": make_gateway(GatewaySettings.model_validate(NOWHERE)).openapi(),
    }


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for service, description in descriptions().items():
        (folder / f"{service}.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
