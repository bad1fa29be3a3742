"""What each endpoint takes. A name that is not here is refused, as Stripe refuses one that it does not know.

`tests/stripe_simulator/test_faithful.py` finds every name, and every value of a choice, in the library's own types.
"""

from typing import Annotated, Literal

from pydantic import Field

from darktree_stripe_simulator.values import (
    Boolean,
    Currency,
    Group,
    Integer,
    LongText,
    Metadata,
    Page,
    Parameters,
    Range,
    SessionStatus,
    Text,
    Url,
)

MAX_AMOUNT_CENTS = 99_999_999
PaymentMethodType = Literal["card", "us_bank_account", "sepa_debit"]
TaxBehavior = Literal["exclusive", "inclusive", "unspecified"]
Created = Integer | Range | None


class ProductData(Group):
    name: Text
    description: Text | None = None
    tax_code: Text | None = None
    metadata: Metadata = Field(default={})


class PriceData(Group):
    currency: Currency
    unit_amount: Annotated[Integer, Field(ge=0, le=MAX_AMOUNT_CENTS)]
    product: str | None = None
    product_data: ProductData | None = None
    tax_behavior: TaxBehavior = "unspecified"


class NewLineItem(Group):
    price: str | None = None
    price_data: PriceData | None = None
    quantity: Annotated[Integer, Field(ge=1, le=999_999)] | None = None


class PaymentIntentData(Group):
    description: Text | None = None
    metadata: Metadata = Field(default={})
    receipt_email: Text | None = None
    statement_descriptor: Annotated[str, Field(max_length=22)] | None = None
    statement_descriptor_suffix: Annotated[str, Field(max_length=22)] | None = None


class Switch(Group):
    enabled: Boolean


class CreateSession(Parameters):
    mode: Literal["payment"]
    line_items: list[NewLineItem] = Field(default=[], max_length=100)
    success_url: Url | None = None
    cancel_url: Url | None = None
    client_reference_id: Annotated[str, Field(max_length=200)] | None = None
    customer: str | None = None
    customer_email: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$", max_length=800)] | None = None
    customer_creation: Literal["always", "if_required"] = "if_required"
    metadata: Metadata = Field(default={})
    allowed_payment_method_types: list[PaymentMethodType] | None = None
    excluded_payment_method_types: list[PaymentMethodType] = Field(default=[], max_length=3)
    payment_intent_data: PaymentIntentData = PaymentIntentData()
    automatic_tax: Switch = Switch(enabled=False)
    tax_id_collection: Switch | None = None
    billing_address_collection: Literal["auto", "required"] | None = None
    submit_type: Literal["auto", "book", "donate", "pay", "subscribe"] | None = None
    locale: Annotated[str, Field(max_length=8)] | None = None
    ui_mode: Literal["hosted_page"] = "hosted_page"
    expires_at: Integer | None = None


class UpdateMetadata(Parameters):
    metadata: Metadata = Field(default={})


class CustomerDetails(Group):
    email: str


class ListSessions(Page):
    created: Created = None
    payment_intent: str | None = None
    customer: str | None = None
    customer_details: CustomerDetails | None = None
    status: SessionStatus | None = None


class ListCreated(Page):
    created: Created = None


class ListPaymentIntents(ListCreated):
    customer: str | None = None


class ListCharges(ListCreated):
    customer: str | None = None
    payment_intent: str | None = None


class CreateRefund(Parameters):
    charge: str | None = None
    payment_intent: str | None = None
    amount: Annotated[Integer, Field(ge=1, le=MAX_AMOUNT_CENTS)] | None = None
    reason: Literal["duplicate", "fraudulent", "requested_by_customer"] | None = None
    metadata: Metadata = Field(default={})


class ListRefunds(ListCreated):
    charge: str | None = None
    payment_intent: str | None = None


class Evidence(Group):
    """Texts, and ids of uploaded files."""

    access_activity_log: LongText | None = None
    billing_address: LongText | None = None
    cancellation_policy: str | None = None
    cancellation_policy_disclosure: LongText | None = None
    cancellation_rebuttal: LongText | None = None
    customer_communication: str | None = None
    customer_email_address: Text | None = None
    customer_name: Text | None = None
    customer_purchase_ip: Text | None = None
    customer_signature: str | None = None
    duplicate_charge_documentation: str | None = None
    duplicate_charge_explanation: LongText | None = None
    duplicate_charge_id: str | None = None
    product_description: LongText | None = None
    receipt: str | None = None
    refund_policy: str | None = None
    refund_policy_disclosure: LongText | None = None
    refund_refusal_explanation: LongText | None = None
    service_date: Text | None = None
    service_documentation: str | None = None
    shipping_address: Text | None = None
    shipping_carrier: Text | None = None
    shipping_date: Text | None = None
    shipping_documentation: str | None = None
    shipping_tracking_number: Text | None = None
    uncategorized_file: str | None = None
    uncategorized_text: LongText | None = None


EVIDENCE_FILES = (
    "cancellation_policy",
    "customer_communication",
    "customer_signature",
    "duplicate_charge_documentation",
    "receipt",
    "refund_policy",
    "service_documentation",
    "shipping_documentation",
    "uncategorized_file",
)


class UpdateDispute(Parameters):
    evidence: Evidence = Evidence()
    submit: Boolean = True
    metadata: Metadata = Field(default={})


class ListDisputes(ListCreated):
    charge: str | None = None
    payment_intent: str | None = None


class ListBalanceTransactions(ListCreated):
    currency: Currency | None = None
    payout: str | None = None
    source: str | None = None
    type: Text | None = None


class CreatePayout(Parameters):
    amount: Annotated[Integer, Field(ge=1, le=MAX_AMOUNT_CENTS)]
    currency: Currency
    description: Text | None = None
    metadata: Metadata = Field(default={})


class ListPayouts(ListCreated):
    arrival_date: Created = None
    status: Text | None = None


class ListEvents(ListCreated):
    type: Text | None = None
    types: list[Text] = Field(default=[], max_length=20)
    delivery_success: Boolean | None = None


class CreateProduct(Parameters):
    name: Text
    id: Text | None = None
    description: Text | None = None
    tax_code: Text | None = None
    metadata: Metadata = Field(default={})


class CreatePrice(Parameters):
    currency: Currency
    unit_amount: Annotated[Integer, Field(ge=0, le=MAX_AMOUNT_CENTS)]
    product: str | None = None
    nickname: Text | None = None
    lookup_key: Annotated[str, Field(max_length=200)] | None = None
    tax_behavior: TaxBehavior = "unspecified"
    metadata: Metadata = Field(default={})


class CreateCustomer(Parameters):
    email: Text | None = None
    name: Text | None = None
    description: Text | None = None
    metadata: Metadata = Field(default={})


class ListCustomers(ListCreated):
    email: str | None = None


class ListFiles(ListCreated):
    purpose: Literal["dispute_evidence"] | None = None
