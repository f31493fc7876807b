"""Reads the recordings of upstream's multus-cni in this folder: HTTP messages, pods, networks, Events.

A recording holds whole HTTP messages as they were on the socket. ``README.md`` describes its files. What differs
between two messages is the subject of :mod:`tests.support.multus_wire.comparison`.
"""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
Json = dict[str, Any]


@dataclass(frozen=True)
class HttpMessage:
    """A request or a response.

    :ivar start: the request line or the status line.
    :ivar fields: the header lines as they were sent.
    :ivar body: the body.
    """

    start: str
    fields: tuple[str, ...]
    body: bytes

    @classmethod
    def parse(cls, raw: bytes) -> "HttpMessage":
        """Parse a message whose body has the length of its ``Content-Length``."""
        head, _, body = raw.partition(b"\r\n\r\n")
        message = replace(cls.parse_head(head), body=body)
        assert len(body) == int(message.headers.get("content-length", "0")), message.start
        return message

    @classmethod
    def parse_head(cls, raw: bytes) -> "HttpMessage":
        """Parse the lines before the body."""
        start, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
        return cls(start, tuple(lines), b"")

    def encode(self) -> bytes:
        """Return the message as bytes, with the length of its body."""
        length = f"Content-Length: {len(self.body)}"
        lines = [length if line.startswith("Content-Length:") else line for line in self.fields]
        return "\r\n".join([self.start, *lines]).encode("latin-1") + b"\r\n\r\n" + self.body

    @property
    def headers(self) -> dict[str, str]:
        """The values of the header lines by name in lower case."""
        pairs = (line.partition(":") for line in self.fields)
        return {name.lower(): value.strip() for name, _, value in pairs}

    @property
    def status(self) -> int:
        """The status of a response."""
        return int(self.start.split(" ")[1])

    @property
    def path(self) -> str:
        """The path of a request."""
        return self.start.split(" ")[1]

    @property
    def document(self) -> Any:
        """The body as decoded JSON."""
        return json.loads(self.body)

    @property
    def environment(self) -> dict[str, str]:
        """The environment in the body of a CNI request."""
        found: dict[str, str] = self.document["env"]
        return found

    @property
    def cni_config(self) -> bytes:
        """The CNI configuration in the body of a CNI request."""
        return base64.b64decode(self.document.get("config", ""))


@dataclass(frozen=True)
class WireExchange:
    """A request and its response.

    :ivar label: what it is called in tables of differences: the step, and which call of the step it is.
    :ivar client: the program that sent it.
    :ivar response: ``None`` if the daemon closed the connection without a response.
    """

    label: str
    client: str
    request: HttpMessage
    response: HttpMessage | None


def response_of(exchange: WireExchange) -> HttpMessage:
    """Return the response of an exchange that has one."""
    assert exchange.response is not None, exchange.label
    return exchange.response


@dataclass(frozen=True)
class ShimRun:
    """One execution of upstream's shim by hand.

    :ivar env: its environment.
    :ivar stdin: its standard input.
    :ivar exit: its exit code.
    :ivar stdout: its standard output.
    """

    env: dict[str, str]
    stdin: str
    exit: int
    stdout: str


@dataclass(frozen=True)
class WireStep:
    """What was done, and the exchanges that followed.

    :ivar pod: name of the pod; ``None`` if the step is about none.
    :ivar number: the place of its first exchange in the order of all; ``None`` if it has none.
    :ivar networks: the pod's networks annotation; ``None`` if the step does not set it.
    :ivar network_status: the pod's network-status after the step; ``None`` if it was not read.
    :ivar events: the pod's Events after the step, ``source type reason: message``.
    :ivar shim: the run of the shim.
    """

    name: str
    note: str
    pod: str | None
    exchanges: tuple[WireExchange, ...]
    number: int | None
    networks: str | None = None
    network_status: str | None = None
    events: tuple[str, ...] = ()
    shim: ShimRun | None = None

    @property
    def status_entries(self) -> list[Json]:
        """The entries of :attr:`network_status`."""
        found: list[Json] = json.loads(self.network_status or "[]")
        return found


@dataclass(frozen=True)
class WireRecording:
    """The exchanges with one daemon.

    :ivar label: the daemon's version, and its CNI version if that is not the usual one.
    :ivar files: the configuration files of the node, by path.
    :ivar nads: ``spec.config`` of the NetworkAttachmentDefinitions, by name.
    :ivar pods: namespace, UID, sandbox, network namespace and annotation of the pods, by name.
    :ivar steps: the steps in their order.
    """

    label: str
    files: dict[str, str]
    nads: dict[str, str]
    pods: dict[str, Json]
    steps: tuple[WireStep, ...]

    def step(self, name: str) -> WireStep:
        """Return a step by its name."""
        return next(step for step in self.steps if step.name == name)

    def exchange(self, label: str) -> WireExchange:
        """Return an exchange by its label, which is the step's name if the step has no other."""
        return next(one for step in self.steps for one in step.exchanges if one.label == label)

    @property
    def primary(self) -> str:
        """The primary network's configuration."""
        return self.files["/etc/cni/net.d/10-peer.conflist"]

    @property
    def cni_version(self) -> str:
        """The CNI version in the daemon's configuration."""
        found: str = json.loads(self.files["/etc/cni/net.d/multus.d/daemon-config.json"])["cniVersion"]
        return found


def _steps(name: str) -> Iterator[WireStep]:
    for item in json.loads((FOLDER / name).read_text())["steps"]:
        yield WireStep(
            item["step"],
            item["note"],
            item.get("pod"),
            tuple(_exchange(item["step"], one, alone=len(item["exchanges"]) == 1) for one in item["exchanges"]),
            item["exchanges"][0]["n"] if item["exchanges"] else None,
            item.get("networks"),
            item.get("networkStatus"),
            tuple(item.get("events", ())),
            ShimRun(**item["shim"]) if "shim" in item else None,
        )


def _exchange(step: str, item: Json, *, alone: bool) -> WireExchange:
    request = HttpMessage.parse(item["request"].encode())
    response = HttpMessage.parse(item["response"].encode()) if item["response"] is not None else None
    call = request.path
    if request.path != "/healthz" and not alone:
        call = f"{request.environment['CNI_COMMAND']} {request.environment['CNI_IFNAME'] or '(nameless)'}"
    return WireExchange(step if alone else f"{step}: {call}", item["client"], request, response)


def _base() -> WireRecording:
    config = json.loads((FOLDER / "v4.3.0" / "config.json").read_text())
    places: list[tuple[float, WireStep]] = []
    for part in ("runtime", "hotplug", "shim", "daemon"):
        place = 0.0
        for step in _steps(f"v4.3.0/{part}.json"):
            # A step without an exchange follows the one before it in its file.
            place = float(step.number) if step.number is not None else place + 0.1
            places.append((place, step))
    steps = tuple(step for _, step in sorted(places, key=lambda item: item[0]))
    return WireRecording("v4.3.0", config["files"], config["networkAttachmentDefinitions"], config["pods"], steps)


def _variant(base: WireRecording, name: str) -> WireRecording:
    """Return a recording of which the file holds only the steps that differ from the base."""
    document = json.loads((FOLDER / name).read_text())
    other = {step.name: step for step in _steps(name)}
    steps = tuple(other.pop(step.name, step) for step in base.steps)
    assert not other
    return replace(base, label=document["multus"], files=document["config"], steps=steps)


V4_3_0 = _base()
"""multus-cni v4.3.0 and multus-dynamic-networks-controller v0.3.7, with upstream's own daemon-config.json."""
V4_3_0_CNI_1_0_0 = _variant(V4_3_0, "v4.3.0-cni-1.0.0-differences.json")
"""The same with ``cniVersion`` 1.0.0."""
V4_2_4 = _variant(V4_3_0, "v4.2.4-differences.json")
"""multus-cni v4.2.4."""
(RUNTIME_STATUS,) = _steps("containerd-2.4.2-status.json")
"""STATUS as containerd 2.4.2 asks it."""
