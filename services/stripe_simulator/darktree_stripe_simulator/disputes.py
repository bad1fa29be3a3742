"""Disputes: an inquiry moves no money; a chargeback takes amount and fee at once, and a win brings the amount back."""

from darktree_stripe_simulator import balance
from darktree_stripe_simulator.account import Account, Object
from darktree_stripe_simulator.errors import Refusal, not_found
from darktree_stripe_simulator.parameters import EVIDENCE_FILES, Evidence, UpdateDispute

RESPONSE_SECONDS = 9 * 86_400
MAX_EVIDENCE_CHARACTERS = 150_000
# What Stripe's test mode decides by (docs.stripe.com/testing#evidence).
WINNING, LOSING = "winning_evidence", "losing_evidence"
NETWORK_REASONS = {"fraudulent": "10.4", "product_not_received": "13.1", "debit_not_authorized": "R10"}
OPEN = frozenset({"needs_response", "under_review", "warning_needs_response", "warning_under_review"})


def open_dispute(
    account: Account,
    charge: Object,
    *,
    reason: str = "fraudulent",
    amount: int | None = None,
    inquiry: bool = False,
    withdraw: bool = True,
) -> Object:
    """The payer's bank disputes a charge. Raises Refusal when nothing of it is left to dispute."""
    left = charge["amount"] - charge["amount_refunded"]
    amount = left if amount is None else amount
    if charge["status"] != "succeeded" or not 0 < amount <= left:
        raise Refusal(f"Charge {charge['id']} has {left} cents that can be disputed.", param="amount")
    kind = charge["payment_method_details"]["type"]
    brand = charge["payment_method_details"]["card"]["brand"] if kind == "card" else None
    reason_code = NETWORK_REASONS.get(reason)
    details: Object = {"type": kind}
    if kind == "card":
        details["card"] = {
            "brand": brand,
            "case_type": "inquiry" if inquiry else "chargeback",
            "network": brand,
            "network_reason_code": reason_code,
        }
    dispute = account.add(
        "du",
        "dispute",
        {
            "amount": amount,
            "balance_transactions": [],
            "charge": charge["id"],
            "currency": charge["currency"],
            "enhanced_eligibility_types": [],
            "evidence": _no_evidence(),
            "evidence_details": {
                "due_by": account.now() + RESPONSE_SECONDS,
                "enhanced_eligibility": {},
                "has_evidence": False,
                "past_due": False,
                "submission_count": 0,
                "submission_method": "not_submitted",
            },
            "is_charge_refundable": inquiry,
            "livemode": False,
            "metadata": {},
            "network_reason_code": reason_code,
            "payment_intent": charge["payment_intent"],
            "payment_method_details": details,
            "reason": reason,
            "status": "warning_needs_response" if inquiry else "needs_response",
        },
    )
    account.change(charge, disputed=True)
    account.emit("charge.dispute.created", dispute)
    if withdraw and not inquiry:
        withdraw_funds(account, dispute)
    return dispute


def withdraw_funds(account: Account, dispute: Object) -> Object:
    """Take the disputed amount and the fee. Raises Refusal when they have been taken."""
    if dispute["balance_transactions"] or dispute["status"].startswith("warning_"):
        raise Refusal(f"Dispute {dispute['id']} has nothing to withdraw.")
    _move(account, dispute, -dispute["amount"], balance.DISPUTE_FEE_CENTS, "dispute", "Chargeback withdrawal")
    account.emit("charge.dispute.funds_withdrawn", dispute)
    return dispute


def escalate(account: Account, dispute: Object) -> Object:
    """An inquiry becomes a chargeback. Raises Refusal when it is none."""
    if dispute["status"] not in {"warning_needs_response", "warning_under_review"}:
        raise Refusal(f"Dispute {dispute['id']} is no open inquiry.")
    details = dispute["payment_method_details"]
    if "card" in details:
        details = {**details, "card": {**details["card"], "case_type": "chargeback"}}
    previous = account.change(
        dispute, status="needs_response", is_charge_refundable=False, payment_method_details=details
    )
    account.emit("charge.dispute.updated", dispute, previous)
    return withdraw_funds(account, dispute)


def close(account: Account, dispute: Object, status: str, *, return_fee: bool = False) -> Object:
    """The bank decides: `won`, `lost`, or an inquiry's `warning_closed`. Raises Refusal."""
    if dispute["status"] not in OPEN or dispute["status"].startswith("warning_") != (
        status == "warning_closed"
    ):
        raise Refusal(
            f"Dispute {dispute['id']} has a status of {dispute['status']}: it cannot become {status}."
        )
    account.change(dispute, status=status)
    if status == "won" and dispute["balance_transactions"]:
        fee = -balance.DISPUTE_FEE_CENTS if return_fee else 0
        _move(account, dispute, dispute["amount"], fee, "dispute_reversal", "Chargeback reversal")
        account.emit("charge.dispute.funds_reinstated", dispute)
    account.emit("charge.dispute.closed", dispute)
    return dispute


def update(account: Account, dispute: Object, given: UpdateDispute) -> Object:
    """Take evidence, and decide as Stripe's test mode does when it is submitted. Raises Refusal."""
    evidence = given.evidence.model_dump(exclude_none=True)
    if evidence and dispute["status"] not in OPEN:
        raise Refusal("This dispute is already closed.", param="evidence")
    for name in EVIDENCE_FILES:
        if evidence.get(name) and evidence[name] not in account.objects:
            raise not_found("file upload", evidence[name], f"evidence[{name}]")
    if sum(len(text) for text in evidence.values()) > MAX_EVIDENCE_CHARACTERS:
        raise Refusal("The combined character count of all evidence is more than 150,000.", param="evidence")
    taken = {**dispute["evidence"], **{name: text or None for name, text in evidence.items()}}
    metadata = {**dispute["metadata"], **given.metadata}
    previous = account.change(
        dispute, evidence=taken, metadata={key: value for key, value in metadata.items() if value}
    )
    details = dispute["evidence_details"]
    if evidence:
        details["has_evidence"] = any(taken.values())
    submitted = bool(evidence) and given.submit
    if submitted:
        details["submission_count"] += 1
        details["submission_method"] = "manual"
        status = "warning_under_review" if dispute["status"].startswith("warning_") else "under_review"
        previous |= account.change(dispute, status=status)
    account.emit("charge.dispute.updated", dispute, previous)
    decided = {WINNING: "won", LOSING: "lost"}.get(taken["uncategorized_text"] or "")
    if submitted and decided:
        is_inquiry = dispute["status"].startswith("warning_")
        close(account, dispute, "warning_closed" if is_inquiry else decided)
    return dispute


def accept(account: Account, dispute: Object) -> Object:
    """Give up a dispute, which loses it (`POST /v1/disputes/{id}/close`). Raises Refusal."""
    if dispute["status"] not in {"needs_response", "under_review"}:
        raise Refusal("This dispute is already closed.")
    return close(account, dispute, "lost")


def _move(account: Account, dispute: Object, amount: int, fee: int, category: str, what: str) -> None:
    transaction = balance.record(
        account,
        "adjustment",
        amount,
        dispute["id"],
        currency=dispute["currency"],
        fee=fee,
        fee_for="Dispute fee",
        description=f"{what} for {dispute['charge']}",
        category=category,
    )
    dispute["balance_transactions"] = [*dispute["balance_transactions"], transaction]


def _no_evidence() -> Object:
    return {**dict.fromkeys(Evidence.model_fields), "enhanced_evidence": {}}
