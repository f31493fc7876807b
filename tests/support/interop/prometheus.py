"""A real Prometheus in the network namespace of a lab, where it reaches the roles as it reaches pods in a cluster.

It scrapes the targets of docker-compose.yml and evaluates the chart's rules; both are read from there. Its API listens
on a port of that namespace, so the requests of a test are sent through sockets that are opened in it.
"""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from tests.support.interop.chart import CHECKOUT
from tests.support.interop.tools import tool
from tests.support.node.netns import run_in_netns

START_DEADLINE = 60.0
"""Seconds; it takes 0.3 s."""
INTERVAL = "1s"
"""Between two scrapes, and between two evaluations of the rules: far shorter than in production, to end tests soon."""

PORT = 9099
Series = dict[str, str]


class Prometheus:
    """A running Prometheus.

    :param netns: path of the network namespace that it runs in.
    """

    def __init__(self, netns: Path) -> None:
        self._netns = netns

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of a GET request; a response that is no success fails the test."""
        status, body = self.request(f"/api/v1/{path}?{urlencode(parameters)}")
        answer = json.loads(body)
        assert (status, answer["status"]) == (200, "success"), answer
        return answer["data"]

    def request(self, resource: str) -> tuple[int, bytes]:
        """Send a GET request and return the response's status and body.

        :raises OSError: nothing listens on the port.
        """
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
        connection.sock = run_in_netns(self._netns, lambda: socket.create_connection(("127.0.0.1", PORT), 30))
        try:
            connection.request("GET", resource)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def targets(self) -> dict[str, dict[str, Any]]:
        """Return the targets by their label ``pod``."""
        return {target["labels"]["pod"]: target for target in self.get("targets", state="active")["activeTargets"]}

    def rules(self) -> dict[str, dict[str, Any]]:
        """Return the rules by name, with their state and active alerts."""
        return {rule["name"]: rule for group in self.get("rules")["groups"] for rule in group["rules"]}

    def alerts(self, rule: str) -> list[Series]:
        """Return the labels of the alerts of a rule that are pending or fire."""
        return [alert["labels"] for alert in self.rules()[rule]["alerts"]]

    def query(self, expression: str) -> list[tuple[Series, float]]:
        """Return the labels and the values of an expression now."""
        found = self.get("query", query=expression)["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]

    def series(self, selector: str) -> list[Series]:
        """Return the labels of all series that a selector has ever matched."""
        found: list[Series] = self.get("series", **{"match[]": selector})
        return found

    def selectors(self, expression: str) -> list[str]:
        """Return the selectors of an expression, without their time ranges and offsets."""
        return list(_selectors_in(self.get("parse_query", query=expression)))


def _selectors_in(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for one in node:
            yield from _selectors_in(one)
    elif isinstance(node, dict):
        if node.get("type") in ("vectorSelector", "matrixSelector"):
            matchers = (f"{one['name']}{one['type']}{json.dumps(one['value'])}" for one in node["matchers"])
            yield f"{{{','.join(matchers)}}}"
        yield from _selectors_in(list(node.values()))


def compose_configuration() -> dict[str, Any]:
    """Return the configuration of Prometheus in docker-compose.yml."""
    compose = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())
    configuration: dict[str, Any] = yaml.safe_load(compose["configs"]["prometheus"]["content"])
    return configuration


@contextlib.contextmanager
def prometheus(directory: Path, netns: Path, targets: dict[str, str], groups: list[Any]) -> Iterator[Prometheus]:
    """Provide a running Prometheus and stop it at the end.

    :param directory: for its configuration, data and log.
    :param targets: addresses to scrape in the place of those of docker-compose.yml, by their label ``pod``.
    :param groups: the groups of rules.
    """
    configuration = compose_configuration()
    configuration["global"] |= {
        "scrape_interval": INTERVAL,
        "scrape_timeout": INTERVAL,
        "evaluation_interval": INTERVAL,
    }
    (job,) = configuration["scrape_configs"]
    job["static_configs"] = [{"targets": [address], "labels": {"pod": pod}} for pod, address in targets.items()]
    configuration["rule_files"] = ["rules.yaml"]
    directory.mkdir(parents=True, exist_ok=True)
    file, log = directory / "prometheus.yml", directory / "prometheus.log"
    file.write_text(yaml.safe_dump(configuration))
    (directory / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    arguments = (
        f"--config.file={file}",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{PORT}",
    )
    command = ["nsenter", f"--net={netns}", str(tool("prometheus")), *arguments, "--log.level=warn"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={"HOME": os.devnull, "PATH": os.environ["PATH"]}
        )
    try:
        running = Prometheus(netns)
        _wait_until_ready(running, process, log)
        yield running
    finally:
        # There is nothing to save.
        process.kill()
        process.wait()


def _wait_until_ready(running: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE
    while True:
        assert process.poll() is None, f"Prometheus ended:\n{log.read_text()[-4000:]}"
        assert time.monotonic() < deadline, f"Prometheus is not ready:\n{log.read_text()[-4000:]}"
        with contextlib.suppress(OSError):
            if running.request("/-/ready")[0] == 200:
                return
        time.sleep(0.05)
