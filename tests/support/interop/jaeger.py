"""A real Jaeger on loopback: OTLP over HTTP and gRPC in, the query API out; all spans in memory.

Jaeger's built-in configuration listens on a dozen fixed ports and, for queries, on every address. This one listens on
four chosen ports of 127.0.0.1. It has no batch processor, so a span can be queried once its export was answered.
"""

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.support.interop.tools import tool

START_DEADLINE = 60.0
"""Seconds; it takes 0.2 s."""

# JSON is YAML.
CONFIG: dict[str, Any] = {
    "service": {
        "extensions": ["jaeger_storage", "jaeger_query"],
        "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
        "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
    },
    "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
}

Trace = dict[str, Any]
Hop = tuple[str, str]


class Jaeger:
    """A running Jaeger.

    :ivar http: URL of the receiver of OTLP over HTTP.
    :ivar grpc: URL of the receiver of OTLP over gRPC.
    :ivar query: URL of the query API and the page.
    """

    def __init__(self, grpc: int, http: int, query: int) -> None:
        self.grpc, self.http, self.query = (f"http://127.0.0.1:{port}" for port in (grpc, http, query))

    def services(self) -> list[str]:
        """Return the names of all services that have spans."""
        return self._get("services") or []

    def traces(self, service: str) -> list[Trace]:
        """Return the traces with spans of a service, newest first."""
        return self._get(f"traces?service={quote(service, safe='')}&limit=100") or []

    def trace(self, trace_id: str) -> Trace | None:
        """Return the trace with an id; ``None`` if there is none.

        :param trace_id: 32 hex digits.
        """
        try:
            (found,) = self._get(f"traces/{trace_id}")
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    return None
                raise
        return found

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.query}/api/{path}", timeout=30) as response:
            return json.load(response)["data"]


def span_names(trace: Trace) -> dict[str, str]:
    """Return the names of a trace's spans by span id."""
    return {span["spanID"]: span["operationName"] for span in trace["spans"]}


def hops(trace: Trace) -> list[Hop]:
    """Return the service and the name of every span of a trace."""
    return [_hop(trace, span) for span in trace["spans"]]


def roots(trace: Trace) -> tuple[Hop, ...]:
    """Return the service and the name of each span without a parent in the trace: one if the trace is whole."""
    known = span_names(trace)
    return tuple(
        _hop(trace, span) for span in trace["spans"] if not any(one["spanID"] in known for one in span["references"])
    )


def _hop(trace: Trace, span: dict[str, Any]) -> Hop:
    return trace["processes"][span["processID"]]["serviceName"], span["operationName"]


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 on which nothing listens."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


@contextlib.contextmanager
def jaeger(directory: Path) -> Iterator[Jaeger]:
    """Provide a running Jaeger and stop it at the end.

    :param directory: for its configuration and its log.
    """
    grpc, http, query, query_grpc = free_ports(4)
    listen = {"endpoint": f"127.0.0.1:{query}"}
    config = CONFIG | {
        "extensions": {
            "jaeger_query": {
                "storage": {"traces": "memory"},
                "http": listen,
                "grpc": {"endpoint": f"127.0.0.1:{query_grpc}"},
            },
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 10_000}}}},
        },
        "receivers": {
            "otlp": {
                "protocols": {
                    "grpc": {"endpoint": f"127.0.0.1:{grpc}"},
                    "http": {"endpoint": f"127.0.0.1:{http}"},
                }
            }
        },
    }
    directory.mkdir(parents=True, exist_ok=True)
    file, log = directory / "jaeger.yaml", directory / "jaeger.log"
    file.write_text(json.dumps(config))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(tool("jaeger")), "--config", f"file:{file}"], stdout=output, stderr=output, env={"HOME": os.devnull}
        )
    try:
        running = Jaeger(grpc, http, query)
        _wait_until_ready(running, process, log)
        yield running
    finally:
        # An orderly stop waits 10 s for open connections, and there is nothing to save.
        process.kill()
        process.wait()


def _wait_until_ready(running: Jaeger, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the query API answers and both receivers accept connections."""
    deadline = time.monotonic() + START_DEADLINE
    while True:
        assert process.poll() is None, f"Jaeger ended:\n{log.read_text()[-4000:]}"
        assert time.monotonic() < deadline, f"Jaeger is not ready:\n{log.read_text()[-4000:]}"
        try:
            running.services()
            for url in (running.grpc, running.http):
                socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
