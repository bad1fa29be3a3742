"""kmock with the little of Kubernetes that the operator's wiring needs: versions, uids and server-side apply.

No schema, no ownership, no controllers: what those do is tried on a real API server.
"""

import itertools

import attrs
from aiohttp import web
from kmock import KubernetesEmulator, Request, action

APPLY = "application/apply-patch+yaml"


@attrs.define(kw_only=True)
class MockApi(KubernetesEmulator):
    """Stamps what is written; an object that is applied is made when it is absent."""

    _versions: "itertools.count[int]" = attrs.field(factory=lambda: itertools.count(1), init=False)

    @property
    def asked(self) -> list[Request]:
        """Every request so far."""
        return list(self)

    async def _handle(self, request: Request) -> web.StreamResponse:
        if request.resource is not None and request.action in {action.CREATE, action.UPDATE}:
            self._stamp(request)
            if request.headers.get("Content-Type") == APPLY and request.name is not None:
                key = (request.resource, request.namespace, request.name)
                if key not in list(self.objects):
                    self.objects[key] = request.data
        return await super()._handle(request)

    def _stamp(self, request: Request) -> None:
        version = next(self._versions)
        metadata = request.data.setdefault("metadata", {})
        metadata |= {"resourceVersion": str(version), "namespace": request.namespace}
        if request.action == action.CREATE:
            metadata.setdefault("name", f"{metadata.get('generateName', '')}{version}")
            metadata |= {"uid": f"uid-{version}", "generation": 1}
