"""Traces: where the time of one request went, through every service. Off until a process is told where spans go.

While it is off nothing of OpenTelemetry is even imported, and a request pays one look at `tracer`. Spans are sent in
batches by a thread; a collector that is slow or away loses spans and delays nobody. A span has what is named in code,
never a prompt, an answer, a query or a header. `traceparent` (https://www.w3.org/TR/trace-context/) is taken from
callers and passed on; at the edge a caller's trace is joined, but our own share alone decides what is recorded.
"""

from collections.abc import Mapping
from contextvars import Token
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

from darktree_kit.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

    from darktree_kit.settings import TracedSettings

TRACEPARENT = "traceparent"
MAX_WAITING_SPANS = 4_096  # of a collector that does not keep up; those after them are dropped
FLUSH_MILLISECONDS = 3_000
_QUIET_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})

tracer: "Tracer | None" = None
_provider: "TracerProvider | None" = None
_at_edge = True


def configure(service: str, settings: "TracedSettings", *, at_edge: bool = False) -> None:
    """Send this process' spans where its settings say; nowhere, when they do not.

    `at_edge` begins traces; other processes only continue those of their callers.
    """
    global tracer, _provider, _at_edge
    if not settings.otlp_endpoint:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    share = TraceIdRatioBased(settings.trace_share)
    # A stranger's flag must not make us record: the share decides by the trace's id, also for a caller's trace.
    sampler = ParentBased(share, remote_parent_sampled=share) if at_edge else ParentBased(share)
    resource = Resource.create({"service.name": f"darktree-{service}", "service.version": VERSION})
    _provider = TracerProvider(sampler=sampler, resource=resource)
    exporter = OTLPSpanExporter(
        endpoint=settings.otlp_endpoint.rstrip("/") + "/v1/traces",
        headers=_headers(settings.otlp_header.get_secret_value()),
    )
    _provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=MAX_WAITING_SPANS))
    tracer, _at_edge = _provider.get_tracer("darktree", VERSION), at_edge


def flush() -> None:
    """Send what waits, before the process ends."""
    if _provider is not None:
        _provider.force_flush(FLUSH_MILLISECONDS)


@dataclass(frozen=True, slots=True)
class Serving:
    """The span of a request that this process answers, and how to leave it again."""

    span: "Span"
    _token: "Token[Context]"

    def end(self, method: str, route: str, status: int) -> None:
        from opentelemetry import context
        from opentelemetry.trace import StatusCode

        context.detach(self._token)
        self.span.update_name(f"{method} {route}")
        self.span.set_attributes({"http.request.method": method, "http.route": route})
        self.span.set_attribute("http.response.status_code", status)
        if status >= 500 or status == 0:
            self.span.set_status(StatusCode.ERROR)
        self.span.end()


def begin(scope: Scope, request_id: str) -> Serving | None:
    """Begin the span of an arrived request and make it the current one. Only where tracing is on."""
    assert tracer is not None
    from opentelemetry import context
    from opentelemetry.trace import SpanKind, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carried = next((value for name, value in scope["headers"] if name == b"traceparent"), None)
    if scope["path"] in _QUIET_PATHS or (carried is None and not _at_edge):
        return None
    carrier = {} if carried is None else {TRACEPARENT: carried.decode("latin-1")}
    parent = TraceContextTextMapPropagator().extract(carrier)
    attributes = {"darktree.request_id": request_id}
    span = tracer.start_span("HTTP", context=parent, kind=SpanKind.SERVER, attributes=attributes)
    return Serving(span, context.attach(set_span_in_context(span, parent)))


def headers() -> dict[str, str]:
    """Return what continues the current trace in another process; nothing when there is none."""
    if tracer is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return {TRACEPARENT: carrier[TRACEPARENT]} if TRACEPARENT in carrier else {}


def tell(
    name: str, start_nanoseconds: int, end_nanoseconds: int, attributes: Mapping[str, Any], **options: Any
) -> None:
    """Record a span below the current one of what has already happened, by Unix time. Only where tracing is on."""
    assert tracer is not None
    from opentelemetry.trace import SpanKind, StatusCode

    kind = SpanKind.CLIENT if options.get("client") else SpanKind.INTERNAL
    span = tracer.start_span(name, kind=kind, attributes=dict(attributes), start_time=start_nanoseconds)
    for event, at_nanoseconds in options.get("events", {}).items():
        span.add_event(event, timestamp=at_nanoseconds)
    if options.get("failed"):
        span.set_status(StatusCode.ERROR)
    span.end(end_nanoseconds)


def _headers(line: str) -> dict[str, str]:
    name, separator, value = line.partition(":")
    if line and not (separator and name.strip() and value.strip()):
        raise ValueError("the collector's header is `Name: value`")
    return {name.strip(): value.strip()} if line else {}
