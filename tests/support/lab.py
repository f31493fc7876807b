"""A lab for end-to-end tests and benchmarks: brought up once, with VMs that have free slots, spoken to as a user would.

Nothing here reaches into a role: objects are read through the API server, spans from the trace files, the guest's own
word from its serial console.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from schemas.kube import PODS, VMIS, Pod, VirtualMachineInstance
from services.common.domain.operations import belongs_to
from services.lab import commands
from services.lab.guest.console import ConsoleFollower, LinkEvent
from services.lab.layout import Guests, Layout
from services.lab.node.launcher import GUEST_ANNOTATION

SAMPLE_VM = "centos-stream9-1"
SAMPLE_NAD = "bridge-net"
SLOTS = 8

Span = dict[str, Any]


class Lab:
    """A running lab."""

    def __init__(self, directory: Path) -> None:
        self.layout = Layout(directory)
        self._names = itertools.count(1)
        self._used = {SAMPLE_VM: 0}

    @property
    def faults(self) -> Path:
        """The folder in which points of death are armed, see :mod:`services.common.faults`."""
        return self.layout.dir / "faults"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a user of this lab."""
        return {**os.environ, "KUBECONFIG": str(self.layout.kubeconfig), "HOTNIC_LAB_DIR": str(self.layout.dir)}

    def hotnic(self, *arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command of the command line."""
        command = [sys.executable, "-m", "services.cli", *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl; its standard output. A failure of it fails the test."""
        done = subprocess.run(
            ["kubectl", *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def raw(self, path: str, body: str, *, method: str = "replace") -> tuple[int, dict[str, Any]]:
        """PUT (``replace``) or POST (``create``) a body as kubectl would; exit code and the ``Status``, if any."""
        done = subprocess.run(
            ["kubectl", method, "--raw", path, "-f", "-", "-v", "8"],
            env=self.environment,
            input=body,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, {"stderr": done.stderr, "stdout": done.stdout}

    def vmi(self, name: str, namespace: str = "default") -> VirtualMachineInstance:
        """A VMI, as the API server has it."""
        text = self.kubectl("get", VMIS.plural, name, "-n", namespace, "-o", "json")
        return msgspec.json.decode(text, type=VirtualMachineInstance)

    def pod(self, vmi: VirtualMachineInstance) -> Pod:
        """The launcher pod of a VMI."""
        text = self.kubectl("get", PODS.plural, "-n", vmi.metadata.namespace, "-o", "json")
        pods = msgspec.convert(json.loads(text)["items"], list[Pod])
        (pod,) = [pod for pod in pods if belongs_to(pod, vmi)]
        return pod

    def edit_template(self, vm: str, *changes: tuple[str, str, Any]) -> None:
        """Edit a VM's template as a user does: JSON patch operations, paths below the template's spec."""
        ops = [{"op": op, "path": f"/spec/template/spec{path}", "value": value} for op, path, value in changes]
        self.kubectl("patch", "vm", vm, "--type=json", "-p", json.dumps(ops))

    def console(self, vmi: VirtualMachineInstance) -> ConsoleFollower:
        """A follower of a guest's serial console, from its beginning."""
        return ConsoleFollower(self.layout.guests / vmi.metadata.uid / "console.log")

    def vm_with_a_slot(self, *, empty: bool = False) -> str:
        """A running VM that takes one more NIC; the slot is the caller's. Boots another when all are full.

        :param empty: one whose only card is that of the pod network.
        """
        name = next((vm for vm, used in self._used.items() if used < (1 if empty else SLOTS)), None)
        if name is None:
            name = f"vm{len(self._used) + 1}"
            self.boot(name)
            self._used[name] = 0
        self._used[name] += 1
        return name

    def give_slot_back(self, vm: str) -> None:
        """What the caller plugged into this VM is unplugged again, and nothing is left of it."""
        self._used[vm] -= 1

    def fill(self, vm: str) -> None:
        """The caller has used every slot of this VM."""
        self._used[vm] = SLOTS

    @contextlib.contextmanager
    def without(self, component: str) -> Iterator[None]:
        """Stop one of the lab's processes meanwhile."""
        said: list[str] = []
        assert commands.change(self.layout.dir, "stop", component, said.append) == 0, said
        try:
            yield
        finally:
            assert commands.change(self.layout.dir, "start", component, said.append) == 0, said

    def boot(self, name: str, *, guest: Guests = "qemu") -> None:
        """Make a VM like the sample one and wait until it runs; it is the caller's alone.

        :param guest: a double is there at once.
        """
        manifest = self.kubectl("get", "vm", SAMPLE_VM, "-o", "json")
        sample = json.loads(manifest)
        vm = {
            "apiVersion": sample["apiVersion"],
            "kind": sample["kind"],
            "metadata": {"name": name, "namespace": "default"},
            "spec": sample["spec"],
        }
        vm["spec"]["template"].setdefault("metadata", {}).setdefault("annotations", {})[GUEST_ANNOTATION] = guest
        self.kubectl("apply", "-f", "-", stdin=json.dumps(vm))
        self.kubectl("wait", "vm", name, "--for=condition=Ready", "--timeout=60s")

    def interface_name(self) -> str:
        """A name that no other test uses."""
        return f"nic{next(self._names)}"

    def spans(self, trace_id: str) -> list[Span]:
        """Every span of a trace, from the span files of all processes; ``service`` is added to each."""
        return [span for span in self.all_spans() if span["traceId"].lower() == trace_id]

    def all_spans(self) -> list[Span]:
        """Every span of every process, whatever its trace; ``service`` is added to each."""
        found: list[Span] = []
        for file in self.layout.traces.glob("*.jsonl"):
            for line in file.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    found += _spans_of(json.loads(line))
        return found

    def wait_for_spans(self, trace_id: str, names: set[str], timeout: float = 10.0) -> list[Span]:
        """The spans of a trace, once some begin with each of these names (a span is written when it ends)."""
        deadline = time.monotonic() + timeout
        while True:
            spans = self.spans(trace_id)
            missing = {name for name in names if not any(span["name"].startswith(name) for span in spans)}
            if not missing:
                return spans
            assert time.monotonic() < deadline, f"spans that did not come: {sorted(missing)}"
            time.sleep(0.05)


def _spans_of(line: dict[str, Any]) -> Iterator[Span]:
    for resource in line.get("resourceSpans", ()):
        attributes = {a["key"]: a["value"] for a in resource["resource"]["attributes"]}
        service = attributes["service.name"]["stringValue"]
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                yield {**span, "service": service}


def until(true: Callable[[], bool], timeout: float = 20.0) -> None:
    """Wait until something comes to pass."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass"


def links_seen(events: list[Any], mac: str) -> list[LinkEvent]:
    """What a guest's console said about the link with a MAC."""
    return [event for event in events if isinstance(event, LinkEvent) and event.mac == mac.lower()]


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables of this process meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def running_lab(directory: Path, *, bare: bool = False, guests: Guests = "qemu") -> Iterator[Lab]:
    """Bring a lab up, give it, and take it down whatever happens. Its roles look for armed points of death."""
    said: list[str] = []
    points = directory / "faults"
    points.mkdir(parents=True, exist_ok=True)
    with environment(HOTNIC_TEST_FAULTS=str(points)):
        code = commands.up(commands.UpOptions(dir=directory, bare=bare, guests=guests), said.append)
    assert code == 0, "the lab did not come up:\n" + "\n".join(said)
    try:
        yield Lab(directory)
    finally:
        assert commands.down(directory, said.append) == 0, "\n".join(said)
