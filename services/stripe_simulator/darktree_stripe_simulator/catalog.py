"""Products, prices and customers: what a session may name."""

from typing import Any

from darktree_stripe_simulator.account import Account, Object
from darktree_stripe_simulator.errors import invalid_parameter
from darktree_stripe_simulator.parameters import (
    CreateCustomer,
    CreatePrice,
    CreateProduct,
    PriceData,
    ProductData,
)


def create_product(account: Account, given: CreateProduct) -> Object:
    if given.id is not None and given.id in account.objects:
        raise invalid_parameter("Product already exists.", "id", "resource_already_exists")
    product = _make_product(account, given.name, given.description, given.tax_code, dict(given.metadata))
    if given.id is not None:
        account.objects[given.id] = account.objects.pop(product["id"])
        account.private[given.id] = account.private.pop(product["id"])
        product["id"] = given.id
    account.emit("product.created", product)
    return product


def create_price(account: Account, given: CreatePrice) -> Object:
    if given.product is None:
        raise invalid_parameter("Prices need a `product`.", "product", "parameter_missing")
    account.find("product", given.product, "product")
    price = _make_price(
        account,
        given.product,
        given.currency,
        given.unit_amount,
        given.tax_behavior,
        active=True,
        nickname=given.nickname,
        lookup_key=given.lookup_key,
        metadata=dict(given.metadata),
    )
    account.emit("price.created", price)
    return price


def inline_price(account: Account, given: PriceData, name: str) -> Object:
    """Return the price that a session's `price_data` makes: inactive, for this session alone."""
    if (given.product is None) == (given.product_data is None):
        raise invalid_parameter("You must specify one of `product` and `product_data`.", name)
    if given.product is not None:
        product = account.find("product", given.product, f"{name}[product]")
    else:
        data = given.product_data or ProductData(name="")
        product = _make_product(account, data.name, data.description, data.tax_code, dict(data.metadata))
        product["active"] = False
    return _make_price(
        account, product["id"], given.currency, given.unit_amount, given.tax_behavior, active=False
    )


def create_customer(account: Account, given: CreateCustomer) -> Object:
    return make_customer(
        account,
        email=given.email,
        name=given.name,
        description=given.description,
        metadata=dict(given.metadata),
    )


def make_customer(account: Account, **fields: Any) -> Object:
    customer = account.add(
        "cus",
        "customer",
        {
            "address": None,
            "balance": 0,
            "currency": None,
            "default_source": None,
            "delinquent": False,
            "description": None,
            "email": None,
            "invoice_settings": {
                "custom_fields": None,
                "default_payment_method": None,
                "footer": None,
                "rendering_options": None,
            },
            "livemode": False,
            "metadata": {},
            "name": None,
            "phone": None,
            "preferred_locales": [],
            "shipping": None,
            "tax_exempt": "none",
            "test_clock": None,
            **fields,
        },
    )
    account.emit("customer.created", customer)
    return customer


def _make_product(
    account: Account, name: str, description: str | None, tax_code: str | None, metadata: dict[str, str]
) -> Object:
    return account.add(
        "prod",
        "product",
        {
            "active": True,
            "default_price": None,
            "description": description,
            "images": [],
            "livemode": False,
            "marketing_features": [],
            "metadata": metadata,
            "name": name,
            "package_dimensions": None,
            "shippable": None,
            "statement_descriptor": None,
            "tax_code": tax_code,
            "type": "service",
            "unit_label": None,
            "updated": account.now(),
            "url": None,
        },
    )


def _make_price(
    account: Account,
    product: str,
    currency: str,
    unit_amount: int,
    tax_behavior: str,
    *,
    active: bool,
    **fields: Any,
) -> Object:
    return account.add(
        "price",
        "price",
        {
            "active": active,
            "billing_scheme": "per_unit",
            "currency": currency.lower(),
            "custom_unit_amount": None,
            "livemode": False,
            "lookup_key": None,
            "metadata": {},
            "nickname": None,
            "product": product,
            "recurring": None,
            "tax_behavior": tax_behavior,
            "tiers_mode": None,
            "transform_quantity": None,
            "type": "one_time",
            "unit_amount": unit_amount,
            "unit_amount_decimal": str(unit_amount),
            **fields,
        },
    )
