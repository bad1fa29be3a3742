"""How the gateway and the command line use billing."""

from darktree_billing.schemas import Catalog, VerifiedKey, VerifyKey
from darktree_kit.errors import ApiError
from darktree_kit.http import InternalClient


class BillingClient:
    """The gateway's look-ups. Raises billing's refusals as ApiError, and Unreachable when it does not answer."""

    def __init__(self, base_url: str, token: str) -> None:
        self._http = InternalClient(base_url, token, service="billing")

    async def close(self) -> None:
        await self._http.close()

    async def verify_key(self, key_id: str, key_sha256: str) -> VerifiedKey | None:
        """Return whose key this is, or None when it is unknown, revoked or expired."""
        body = VerifyKey(key_id=key_id, key_sha256=key_sha256).model_dump_json().encode()
        try:
            content = await self._http.call("POST", "/internal/keys/verify", body=body)
        except ApiError as error:
            if error.answer_status == 404:
                return None
            raise
        return VerifiedKey.model_validate_json(content)

    async def catalog(self) -> Catalog:
        """Return every plan and model with its prices."""
        return Catalog.model_validate_json(await self._http.call("GET", "/internal/catalog"))
