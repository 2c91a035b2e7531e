"""What a monitor reads of a server: numbers at /metrics, logs without secrets, traces where a collector is named."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.extras import missing_extra
from diffing_mcp.core.settings import settings
from diffing_mcp.core.version import version

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from diffing_mcp.mcp_server.server_context import ServerContext

SECONDS = (0.01, 0.1, 0.5, 1, 5, 15, 50)


class Metrics:
    """The numbers of one server: calls by tool and outcome, and at the time of reading jobs and models in memory. The
    library that writes them is imported by who reads them.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._calls: Counter[tuple[str, str]] = Counter()
        self._within: Counter[float] = Counter()
        self._seconds = 0.0

    def called(self, tool: str, outcome: str, seconds: float) -> None:
        """Count a call."""
        self._calls[tool, outcome] += 1
        self._within.update(limit for limit in SECONDS if seconds <= limit)
        self._seconds += seconds

    def collect(self) -> Iterable[Metric]:
        """What is so now, for a registry."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        calls = CounterMetricFamily("diffing_calls", "Tool calls.", labels=("tool", "outcome"))
        for labels, count in self._calls.items():
            calls.add_metric(labels, count)
        yield calls
        buckets = [(str(limit), float(self._within[limit])) for limit in SECONDS]
        buckets.append(("+Inf", float(self._calls.total())))
        yield HistogramMetricFamily("diffing_call_seconds", "Seconds of a tool call.", buckets, self._seconds)
        states = Counter(job.state for job in self._context.jobs.list(None))
        jobs = GaugeMetricFamily("diffing_jobs", "Jobs that this process remembers.", labels=("state",))
        for state in ("queued", "running", "completed", "failed", "cancelled"):
            jobs.add_metric((state,), states[state])
        yield jobs
        resident = self._context.status()
        yield GaugeMetricFamily("diffing_models", "Models in memory.", len(resident))
        yield GaugeMetricFamily("diffing_model_bytes", "Bytes of them.", sum(model.bytes for model in resident))

    def text(self) -> bytes:
        """Everything in the text format of Prometheus."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)


_SECRETS = re.compile(
    r"(?i)(bearer\s+)[^\s\"',]+|\bdiffing_[\w-]{20,}|\b[0-9a-f]{12}\.[\w-]{40,}|\beyJ[\w-]+\.[\w-]+\.[\w-]*|"
    r"\b(?:hf|sk|ghp)[_-][\w-]{16,}"
)
"""Authorization headers, tokens of ours, JWTs, and keys of the services that models and judges come from."""


class LogFormatter(logging.Formatter):
    """One line of text, or with `as_json` one JSON object, a record. Secrets are left out."""

    def __init__(self, as_json: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        if not self.as_json:
            return without_secrets(super().format(record))
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
        }
        if record.exc_info:
            entry["exception"] = without_secrets(self.formatException(record.exc_info))
        return json.dumps(entry, ensure_ascii=False)


def without_secrets(text: str) -> str:
    """A text whose tokens and keys are replaced by stars."""
    operator = settings().operator_token
    if operator is not None and len(operator.get_secret_value()) >= 6:
        text = text.replace(operator.get_secret_value(), "***")
    return _SECRETS.sub(lambda found: f"{found.group(1) or ''}***", text)


def log_to_stderr() -> None:
    """All logs to stderr: over stdio, stdout belongs to the protocol."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter(settings().log_format == "json"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


def send_traces() -> None:
    """Have the SDK's spans (a method, a tool's name, how long; never arguments) sent to the collector that the settings
    name; nothing is sent while they name none.

    Raises:
        MissingExtra: a collector is named, and what sends to it is not installed.
    """
    if not settings().traces:
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise missing_extra(error) or InvalidInput(str(error)) from error
    resource = Resource.create({"service.name": "diffing-mcp", "service.version": version()})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings().traces)))
    trace.set_tracer_provider(provider)
