"""The Kubernetes API over HTTP: plain objects in and out, server-side apply, and watches.

Not the official client's models: they cost memory by the hundred, lose fields that they do not know, and have no word
for a watch that must be begun again. Only its way of finding credentials is taken.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

if TYPE_CHECKING:
    from kubernetes.aio.client import Configuration

REQUEST_TIMEOUT_SECONDS = 30.0
CONNECT_TIMEOUT_SECONDS = 5.0
MAX_CONNECTIONS = 64
PAGE_ITEMS = 500
MAX_PAGES = 1_000
MAX_LINE_BYTES = 16 * 1024 * 1024  # an event is one line; etcd keeps objects under 1.5 MiB
WATCH_SECONDS = 3300  # then the server ends it, and it goes on from where it was
SILENCE_SECONDS = 150.0  # bookmarks come each minute: a watch that is silent for longer is dead

Object = dict[str, Any]
_CALL_TIMEOUT = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS, sock_connect=CONNECT_TIMEOUT_SECONDS)


@dataclass(frozen=True, slots=True)
class Resource:
    """What the API server calls a kind of objects."""

    api_version: str
    plural: str
    kind: str

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the path of one object, or of all in a namespace or everywhere."""
        root = f"/api/{self.api_version}" if "/" not in self.api_version else f"/apis/{self.api_version}"
        place = f"{root}/namespaces/{namespace}" if namespace else root
        return "/".join(part for part in (place, self.plural, name, subresource) if part)


class ClusterError(Exception):
    """The API server refused, or did not answer (status 0). `reason` and `causes` are its own."""

    def __init__(self, status: int, reason: str, message: str, causes: tuple[Object, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = causes


class Missing(ClusterError):
    """There is no such object, or no such kind."""


class Gone(ClusterError):
    """The place to go on from is too old: list again."""


class Cluster:
    """A caller of one API server."""

    def __init__(self, kubeconfig: str | None = None, context: str | None = None) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._configuration: Configuration | None = None
        self._session: aiohttp.ClientSession | None = None
        self._ssl: ssl.SSLContext | bool = True
        self.requests = 0

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        """Return one object. Raises Missing."""
        return await self._call("GET", resource.path(namespace, name))

    async def list(
        self, resource: Resource, namespace: str | None, selector: str = "", *, fields: str = ""
    ) -> tuple[list[Object], str]:
        """Return every object, read in pages, and the version from which a watch goes on."""
        objects: list[Object] = []
        params = {"limit": str(PAGE_ITEMS), "labelSelector": selector, "fieldSelector": fields}
        params = {name: value for name, value in params.items() if value}
        for _ in range(MAX_PAGES):
            page = await self._call("GET", resource.path(namespace), params=params)
            # Items of a list say neither their kind nor their version; those of a watch do.
            kind = {"apiVersion": resource.api_version, "kind": resource.kind}
            objects += [{**kind, **item} for item in page.get("items") or ()]
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return objects, str(metadata.get("resourceVersion") or "")
            params["continue"] = metadata["continue"]
        raise ClusterError(0, "TooMany", f"more than {MAX_PAGES * PAGE_ITEMS} {resource.plural}")

    async def apply(
        self, resource: Resource, wanted: Object, manager: str, *, dry_run: bool = False
    ) -> Object:
        """Say what an object shall be (server-side apply, by force), and return what it is now."""
        metadata = wanted["metadata"]
        params = {"fieldManager": manager, "force": "true"} | ({"dryRun": "All"} if dry_run else {})
        return await self._call(
            "PATCH",
            resource.path(metadata.get("namespace"), metadata["name"]),
            body=wanted,
            params=params,
            content_type="application/apply-patch+yaml",
        )

    async def create(self, resource: Resource, wanted: Object) -> Object:
        """Make an object. Raises ClusterError 409 when it exists."""
        path = resource.path(wanted["metadata"].get("namespace"))
        return await self._call("POST", path, body=wanted)

    async def replace(self, resource: Resource, wanted: Object) -> Object:
        """Put an object in the place of the version that it names. Raises ClusterError 409 when that is old."""
        metadata = wanted["metadata"]
        return await self._call(
            "PUT", resource.path(metadata.get("namespace"), metadata["name"]), body=wanted
        )

    async def merge(
        self, resource: Resource, namespace: str, name: str, change: Object, subresource: str | None = None
    ) -> Object:
        """Change the members that `change` names, with null for those to remove."""
        path = resource.path(namespace, name, subresource)
        return await self._call("PATCH", path, body=change, content_type="application/merge-patch+json")

    async def delete(self, resource: Resource, namespace: str, name: str, *, uid: str | None = None) -> None:
        """Delete an object and, behind it, what it owns; that it is gone already is no error."""
        body: Object = {"propagationPolicy": "Background"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            await self._call("DELETE", resource.path(namespace, name), body=body)
        except Missing:
            return

    async def watch(
        self, resource: Resource, namespace: str | None, since: str, selector: str = ""
    ) -> AsyncIterator[tuple[str, Object]]:
        """Yield (type, object) of each change after `since`, bookmarks too, until the server ends the watch.

        Raises Gone when the changes since are no longer known, ClusterError when the watch breaks off.
        """
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": since,
            "timeoutSeconds": str(WATCH_SECONDS),
        } | ({"labelSelector": selector} if selector else {})
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_SECONDS, sock_read=SILENCE_SECONDS
        )
        try:
            async with await self._send(
                "GET", resource.path(namespace), params=params, timeout=timeout
            ) as answer:
                if answer.status >= 400:
                    raise _refusal(answer.status, await answer.read())
                async for line in _lines(answer.content):
                    event = orjson.loads(line)
                    if event["type"] == "ERROR":
                        raise _refusal(int(event["object"].get("code") or 0), orjson.dumps(event["object"]))
                    yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ClusterError(0, "Unreachable", f"the watch broke off: {type(error).__name__}") from error

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        try:
            answer = await self._send(method, path, body=body, params=params, content_type=content_type)
            async with answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            message = f"the API server did not answer: {type(error).__name__}"
            raise ClusterError(0, "Unreachable", message) from error
        if answer.status >= 400:
            raise _refusal(answer.status, content)
        result: Object = orjson.loads(content)
        return result

    async def _send(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> aiohttp.ClientResponse:
        """Return an answer's beginning. A refused token is read once more: it may have been renewed meanwhile."""
        data = None if body is None else orjson.dumps(body)
        for last_try in (False, True):
            configuration, session = await self._connected()
            token = await configuration.get_api_key_with_prefix("BearerToken")
            headers = {"Content-Type": content_type, "Accept": "application/json"} | (
                {"Authorization": token} if token else {}
            )
            self.requests += 1
            answer = await session.request(
                method,
                configuration.host.rstrip("/") + path,
                data=data,
                params=params,
                headers=headers,
                ssl=self._ssl,
                timeout=timeout or _CALL_TIMEOUT,
            )
            if answer.status != 401 or last_try:
                break
            answer.release()
            self._configuration = None
        return answer

    async def _connected(self) -> "tuple[Configuration, aiohttp.ClientSession]":
        if self._configuration is None:
            self._configuration = await _credentials(self._kubeconfig, self._context)
            self._ssl = _tls(self._configuration)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._configuration, self._session


async def _credentials(kubeconfig: str | None, context: str | None) -> "Configuration":
    """Read the kubeconfig that is named, else the one around, else what a pod is given."""
    # Here, because it takes a good part of a second that commands which ask no cluster need not wait for.
    from kubernetes.aio import config as kubernetes_config
    from kubernetes.aio.client import Configuration

    configuration = Configuration()
    try:
        if kubeconfig is None and context is None:
            try:
                kubernetes_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
                return configuration
            except kubernetes_config.ConfigException:
                pass  # not in a pod
        await kubernetes_config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=kubeconfig, context=context, client_configuration=configuration
        )
    except (kubernetes_config.ConfigException, OSError, TypeError, ValueError) as error:
        raise ClusterError(0, "NoCredentials", f"no cluster's credentials: {error}") from error
    return configuration


def _tls(configuration: "Configuration") -> ssl.SSLContext | bool:
    if not configuration.host.startswith("https"):
        return True
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    # Clusters' own authorities often lack what the strict check of newer Pythons asks for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield whole lines of any length up to the limit; a last one without its end was cut off and is dropped."""
    rest = b""
    async for piece in content.iter_any():
        rest += piece
        if b"\n" in piece:
            *lines, rest = rest.split(b"\n")
            for line in lines:
                if line:
                    yield line
        if len(rest) > MAX_LINE_BYTES:
            raise ValueError("a line is too long")
    await asyncio.sleep(0)


def _refusal(status: int, content: bytes) -> ClusterError:
    try:
        said = orjson.loads(content)
        reason, message = str(said.get("reason") or ""), str(said.get("message") or "")
        causes = tuple((said.get("details") or {}).get("causes") or ())
    except (ValueError, AttributeError):
        reason, message, causes = "", content[:500].decode("utf-8", "replace"), ()
    if status == 404:
        return Missing(status, reason, message, causes)
    if status == 410 or reason in {"Expired", "Gone"}:
        return Gone(status, reason, message, causes)
    return ClusterError(status, reason, message or json.dumps({"status": status}), causes)
