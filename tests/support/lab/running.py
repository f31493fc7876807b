"""A lab for end-to-end tests and benchmarks: started once, with VMs that have free PCIe slots.

Tests use it as a user does: objects are read from the API server, spans from the span files, and the guest's events
from its serial console. Nothing here uses the internals of a role.
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

from lab.cli import commands
from lab.failpoints.points import FAILPOINTS_VARIABLE
from lab.guest.console import ConsoleFollower, LinkEvent
from lab.layout import NODE_NAME, GuestKind, Layout, split_name
from lab.node.launcher import GUEST_ANNOTATION
from schemas.kubernetes.objects import PODS, VMIS, Pod, VirtualMachineInstance
from services.common.domain.operations import belongs_to
from tests.support.lab.process import DEADLINE, stop

SAMPLE_VM = "centos-stream9-1"
SAMPLE_NAD = "bridge-net"
SLOTS = 8
KUBERNETES_VARIABLE = "HOTNIC_TEST_KUBERNETES"
"""Version of Kubernetes on which every lab runs; without it, the lab's own API server (`make kubernetes-test`)."""

Span = dict[str, Any]


class Lab:
    """A running lab."""

    def __init__(self, directory: Path) -> None:
        self.layout = Layout(directory)
        self._names = itertools.count(1)
        self._used = {SAMPLE_VM: 0}

    @property
    def failpoints(self) -> Path:
        """The directory in which failpoints are armed, see :mod:`lab.failpoints`."""
        return self.layout.dir / "failpoints"

    @property
    def nats(self) -> dict[str, str]:
        """The variables with which the administrator connects to the lab's NATS server."""
        identity = self.layout.identity()
        assert identity is not None
        return self.layout.nats_environment(identity.nats_port)

    @property
    def nats_url(self) -> str:
        """The address of the lab's NATS server, for a command of a user, who has the credentials."""
        return self.nats["NATS_URL"]

    @property
    def unrestricted_nats(self) -> dict[str, str]:
        """The variables of an identity that may do everything on the lab's NATS server."""
        return {**self.nats, "NATS_NKEY": str(self.layout.unrestricted_nats_seed)}

    def nats_of(self, process: str) -> dict[str, str]:
        """Return the variables with which a test connects to NATS as a process of the lab."""
        return {**self.nats, "NATS_NKEY": str(self.layout.nats_seed(process))}

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a user of this lab, who names the address of NATS where it is needed."""
        credentials = {name: value for name, value in self.nats.items() if name != "NATS_URL"}
        own = {"KUBECONFIG": str(self.layout.kubeconfig), "HOTNIC_LAB_DIR": str(self.layout.dir)}
        return {**os.environ, **own, **credentials}

    def hotnic(self, *arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a ``hotnic`` command."""
        command = [sys.executable, "-m", "services.cli", *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def run_inside(self, *command: str, node: str = NODE_NAME) -> str:
        """Run a command in a node's namespaces, which must succeed, and return its standard output."""
        done = self.hotnic("lab", "exec", "--node", node, "--", *command)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 45.0) -> str:
        """Run kubectl, which must succeed, and return its standard output."""
        done = subprocess.run(
            ["kubectl", *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def raw(self, path: str, body: str, *, method: str = "replace") -> tuple[int, dict[str, Any]]:
        """PUT (``replace``) or POST (``create``) a body with kubectl; return the exit code and the output streams."""
        done = subprocess.run(
            ["kubectl", method, "--raw", path, "-f", "-", "-v", "8"],
            env=self.environment,
            input=body,
            capture_output=True,
            text=True,
            timeout=45,
            check=False,
        )
        return done.returncode, {"stderr": done.stderr, "stdout": done.stdout}

    def vmi(self, name: str, namespace: str = "default") -> VirtualMachineInstance:
        """Return a VMI from the API server."""
        text = self.kubectl("get", VMIS.plural, name, "-n", namespace, "-o", "json")
        return msgspec.json.decode(text, type=VirtualMachineInstance)

    def pod(self, vmi: VirtualMachineInstance) -> Pod:
        """Return the launcher pod of a VMI."""
        text = self.kubectl("get", PODS.plural, "-n", vmi.metadata.namespace, "-o", "json")
        pods = msgspec.convert(json.loads(text)["items"], list[Pod])
        (pod,) = [pod for pod in pods if belongs_to(pod, vmi)]
        return pod

    def edit_template(self, vm: str, *changes: tuple[str, str, Any]) -> None:
        """Edit a VM's template by JSON patch; the paths are relative to the template's spec."""
        ops = [{"op": op, "path": f"/spec/template/spec{path}", "value": value} for op, path, value in changes]
        self.kubectl("patch", "vm", vm, "--type=json", "-p", json.dumps(ops))

    def console(self, vmi: VirtualMachineInstance) -> ConsoleFollower:
        """Return a follower of a guest's serial console, from its beginning."""
        return ConsoleFollower(self.guest_folder(vmi) / "console.log")

    def guest_folder(self, vmi: VirtualMachineInstance) -> Path:
        """Return the folder of a guest's sockets and console."""
        _, node = split_name(vmi.status.node_name or NODE_NAME)
        return Layout(self.layout.dir, node).guests / vmi.metadata.uid

    def take_slot(self, *, empty: bool = False) -> str:
        """Return a running VM with a free slot and reserve the slot. Boots another VM when all are full.

        :param empty: whether the VM must have no secondary interfaces.
        """
        name = next((vm for vm, used in self._used.items() if used < (1 if empty else SLOTS)), None)
        if name is None:
            name = f"vm{len(self._used) + 1}"
            self.boot(name)
            self._used[name] = 0
        self._used[name] += 1
        return name

    def release_slot(self, vm: str) -> None:
        """Release a reserved slot, after the caller has unplugged its interface."""
        self._used[vm] -= 1

    def mark_full(self, vm: str) -> None:
        """Reserve every slot of a VM."""
        self._used[vm] = SLOTS

    @contextlib.contextmanager
    def stopped(self, component: str) -> Iterator[None]:
        """Stop one of the lab's processes for the duration of the block."""
        output: list[str] = []
        assert commands.change(self.layout.dir, "stop", component, output.append) == 0, output
        try:
            yield
        finally:
            assert commands.change(self.layout.dir, "start", component, output.append) == 0, output

    def boot(self, name: str, *, guest: GuestKind = "qemu") -> None:
        """Create a VM like the sample VM and wait until it is ready; no other test uses it.

        :param guest: a double boots at once.
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
        self.wait_ready(name)

    def wait_ready(self, name: str, namespace: str = "default") -> None:
        """Wait until the guest of a VM has booted."""
        deadline = f"--timeout={DEADLINE:g}s"
        self.kubectl("wait", "vm", name, "-n", namespace, "--for=condition=Ready", deadline, timeout=DEADLINE + 30)

    def interface_name(self) -> str:
        """Return an interface name that no other test uses."""
        return f"nic{next(self._names)}"

    def spans(self, trace_id: str) -> list[Span]:
        """Return the spans of a trace from all span files; ``service`` is added to each."""
        return [span for span in self.all_spans() if span["traceId"].lower() == trace_id]

    def all_spans(self) -> list[Span]:
        """Return all spans of all processes; ``service`` is added to each."""
        found: list[Span] = []
        for file in self.layout.traces.glob("*.jsonl"):
            text = ""
            # A process may give a full file another name meanwhile.
            with contextlib.suppress(FileNotFoundError):
                text = file.read_text()
            for line in text.splitlines():
                with contextlib.suppress(ValueError):
                    found += _spans_of(json.loads(line))
        return found

    def wait_for_spans(self, trace_id: str, names: set[str], timeout: float = 45.0) -> list[Span]:
        """Wait until a trace has spans whose names begin with these, and return all its spans.

        A span is written to its file when it ends.
        """
        deadline = time.monotonic() + timeout
        while True:
            spans = self.spans(trace_id)
            missing = {name for name in names if not any(span["name"].startswith(name) for span in spans)}
            if not missing:
                return spans
            assert time.monotonic() < deadline, f"missing spans: {sorted(missing)}"
            time.sleep(0.05)

    def wait_for_tree(self, trace_id: str, root: str, names: set[str], timeout: float = 45.0) -> list[Span]:
        """Wait as `wait_for_spans` does, and until all spans are below the only one whose name begins with `root`.

        A parent ends after its children, so it is written after them.
        """
        deadline = time.monotonic() + timeout
        while True:
            spans = self.wait_for_spans(trace_id, {root, *names}, timeout)
            (top,) = [span for span in spans if span["name"].startswith(root)]
            above = [span for span in spans if not _is_below(span, top, spans)]
            if not above:
                return spans
            assert time.monotonic() < deadline, f"not below {top['name']}: {[span['name'] for span in above]}"
            time.sleep(0.05)


def _is_below(span: Span, root: Span, spans: list[Span]) -> bool:
    by_id = {one["spanId"]: one for one in spans}
    at: Span | None = span
    while at is not None and at is not root:
        at = by_id.get(at.get("parentSpanId", ""))
    return at is root


def _spans_of(line: dict[str, Any]) -> Iterator[Span]:
    for resource in line.get("resourceSpans", ()):
        attributes = {a["key"]: a["value"] for a in resource["resource"]["attributes"]}
        service = attributes["service.name"]["stringValue"]
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                yield {**span, "service": service}


def wait_until(true: Callable[[], bool], timeout: float = 45.0) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, f"the condition is not true after {timeout:g} s"


def link_events(events: list[Any], mac: str) -> list[LinkEvent]:
    """Return the events of the link with a MAC from a guest's console."""
    return [event for event in events if isinstance(event, LinkEvent) and event.mac == mac.lower()]


def on_kubernetes() -> str | None:
    """Return the version of Kubernetes on which labs run; None with the lab's own API server."""
    return os.environ.get(KUBERNETES_VARIABLE) or None


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables of this process for the duration of the block."""
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
def running_lab(
    directory: Path,
    *,
    bare: bool = False,
    guests: GuestKind = "qemu",
    failpoints: bool = False,
    otlp: str | None = None,
    kubelet: bool = False,
    kubevirt: str | None = None,
    without: tuple[str, ...] = (),
    nodes: int = 1,
) -> Iterator[Lab]:
    """Start a lab, and stop it at the end of the block.

    :param kubelet: whether a kubelet on containerd 2 runs the pods; it needs the variable with a version of Kubernetes.
    :param kubevirt: version of the played KubeVirt beside which hotnic runs.
    :param without: roles that are not started.
    :param nodes: the number of nodes.
    :param otlp: URL of the collector to which it exports its traces.
    :param failpoints: whether the roles have failpoints, which cost some microseconds in each span.
    """
    output: list[str] = []
    lab = Lab(directory)
    lab.failpoints.mkdir(parents=True, exist_ok=True)
    with environment(**({FAILPOINTS_VARIABLE: str(lab.failpoints)} if failpoints else {})):
        options = commands.UpOptions(
            dir=directory,
            bare=bare,
            without=without,
            timeout=DEADLINE,
            guests=guests,
            kubernetes=on_kubernetes(),
            kubelet=kubelet,
            kubevirt=kubevirt,
            otlp=otlp,
            nodes=nodes,
        )
        code = commands.up(options, output.append)
    assert code == 0, "the lab did not start:\n" + "\n".join(output)
    try:
        yield lab
    finally:
        stop(lab.layout)
