"""The stack of docker-compose.yml on a real engine: plug, trace, restarts in the middle of a plug, unplug, removal."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.interop.compose import VM, Compose, plug_options
from tests.support.interop.docker_images import docker
from tests.support.interop.jaeger import Jaeger

JAEGER = Jaeger(grpc=4317, http=4318, query=16686)
"""Only the query API is published."""
CLUSTER_UNREACHABLE = 5
"""Exit code of `hotnic`."""
ROLES = ("api", "controller", "networks", "multus", "handler")


@pytest.fixture
def blue(stack: Compose) -> Iterator[str]:
    """The name of an interface that is unplugged after the test."""
    yield "blue"
    if any(one["interface"] == "blue" for one in stack.status()["interfaces"]):
        stack.unplug("blue")


def services_in_trace(trace_id: str) -> set[str]:
    """Return the services that have spans in a trace."""
    trace = JAEGER.trace(trace_id)
    return {process["serviceName"] for process in trace["processes"].values()} if trace else set()


def ready_vmi(kubeconfig: Path) -> str:
    """Return the UID of the sample VMI if its guest has booted; else an empty string."""
    command = ["kubectl", "--kubeconfig", str(kubeconfig), "get", "vmi", VM, "--ignore-not-found", "--output", "json"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=60)
    vmi = json.loads(done.stdout) if done.stdout.strip() else {}
    conditions = vmi.get("status", {}).get("conditions", [])
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return vmi["metadata"]["uid"] if ready else ""


def engine_home() -> Path:
    """Return the folder of the engine of scripts/with-docker-engine; its name is that of the engine's cgroup."""
    return Path(os.environ["DOCKER_HOST"].removeprefix("unix://")).parent


def mounts_of_containers() -> list[str]:
    """Return the mounts of containers and their network namespaces in the engine's own mount namespace."""
    pidfile = f"--pidfile={engine_home()}/docker.pid".encode()
    found = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if is_dockerd(path, pidfile)]
    # A child that the engine starts has its command line until it executes its own program. The engine is the oldest.
    daemon = min(found, key=started)
    mounts = (daemon / "mountinfo").read_text().splitlines()
    return [line for line in mounts if "/overlay2/" in line or "/netns/" in line]


def started(process: Path) -> float:
    """Return when a process has started, in ticks since the boot; infinity if it has ended."""
    try:
        return float((process / "stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return float("inf")


def is_dockerd(cmdline: Path, argument: bytes) -> bool:
    """Return whether a process is the engine with this argument."""
    try:
        arguments = cmdline.read_bytes().split(b"\0")
    except OSError:  # the process has ended
        return False
    return arguments[0].endswith(b"/dockerd") and argument in arguments


def cgroups_of_containers() -> list[Path]:
    """Return the cgroups below the engine's, one for each container and hierarchy."""
    top, engine = Path("/sys/fs/cgroup"), engine_home().name
    # Version 1 of cgroups has a hierarchy for each controller, version 2 only one.
    found = (*top.glob(f"*/{engine}/*/"), *top.glob(f"{engine}/*/"))
    return [folder for folder in found if folder.is_dir()]


def test_a_nic_is_plugged_and_jaeger_has_every_hop_in_one_trace(stack: Compose, blue: str) -> None:
    assert stack.services().keys() >= {"nats", "jaeger", "cluster", "node", "cli", *ROLES}
    stack.plug(blue)
    (entry,) = [one for one in stack.status()["interfaces"] if one["interface"] == blue]
    assert entry["stage"] == "guest-attached"
    expected = {f"hotnic-{role}" for role in ROLES}
    deadline = time.monotonic() + 120
    # Spans are exported in batches, every 5 s by default.
    while not (found := services_in_trace(entry["traceId"])) >= expected:
        assert time.monotonic() < deadline, f"spans of {expected - found} are missing in trace {entry['traceId']}"
        time.sleep(0.2)
    stack.unplug(blue)
    assert not [one for one in stack.status()["interfaces"] if one["interface"] == blue]


def test_the_bus_accepts_nobody_without_an_identity(stack: Compose) -> None:
    assert stack.hotnic("dead-letter", "list") == ""
    command = stack.command("exec", "-T", "--env", "NATS_NKEY=", "cli", "hotnic", "dead-letter", "list")
    done = subprocess.run(command, env={**os.environ, **stack.images}, text=True, capture_output=True, timeout=120)
    assert done.returncode == CLUSTER_UNREACHABLE, done.stdout
    assert "authorization violation" in done.stderr.lower()


@pytest.mark.parametrize("service", [*ROLES, "nats", "jaeger"])
def test_a_plug_completes_although_a_service_restarts_in_the_middle(stack: Compose, blue: str, service: str) -> None:
    restarting = subprocess.Popen(
        stack.command("restart", "--timeout", "15", service), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    # The api refuses connections while it restarts; the request must reach it, the other services may be down.
    if service == "api":
        assert restarting.wait(timeout=120) == 0
        stack.wait_healthy("api")
    plugging = stack.start_hotnic("addinterface", VM, *plug_options(blue))
    output = plugging.communicate(timeout=180)[0]
    assert restarting.wait(timeout=120) == 0
    assert plugging.returncode == 0, output
    stack.wait_healthy("node", *(name for name in (*ROLES, "nats", "jaeger")))


def test_a_restart_of_the_node_is_a_reboot_after_which_the_vm_can_be_plugged(
    stack: Compose, blue: str, tmp_path: Path
) -> None:
    kubeconfig = stack.write_kubeconfig(tmp_path / "kubeconfig")
    before = ready_vmi(kubeconfig)
    stack.run("restart", "--timeout", "20", "node", timeout=300)
    deadline = time.monotonic() + 300
    while (now := ready_vmi(kubeconfig)) in ("", before):
        assert time.monotonic() < deadline, stack.run("logs", "--tail", "40", "node", "multus")
        time.sleep(0.2)
    stack.wait_healthy("node", "networks", "multus", "handler")
    stack.plug(blue)
    assert ready_vmi(kubeconfig) == now


def test_nothing_is_published_beyond_loopback_and_nothing_is_privileged(compose: Compose) -> None:
    config = json.loads(compose.run("--profile", "metrics", "config", "--format", "json"))
    for name, service in config["services"].items():
        assert not service.get("privileged"), name
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", [])), name
        assert not service["image"].endswith(":latest"), name
        assert "healthcheck" in service or name in ("prometheus", "grafana"), name
    published = {name for name, service in config["services"].items() if service.get("ports")}
    assert published == {"cluster", "jaeger", "grafana"}


def test_down_leaves_nothing(compose: Compose, stack: Compose) -> None:
    """The last test of this file: the fixture's own `down` finds nothing to do."""
    assert mounts_of_containers()
    assert cgroups_of_containers()
    stack.run("down", "--volumes", "--timeout", "20")
    for kind in ("container", "volume", "network"):
        options = ["--all"] if kind == "container" else []
        project = f"label=com.docker.compose.project={compose.project}"
        assert docker(kind, "ls", *options, "--quiet", "--filter", project).stdout == "", kind
    # containerd and the kernel may finish their parts of the removal after the engine has answered.
    deadline = time.monotonic() + 60
    while found := remains():
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def remains() -> list[object]:
    """Return the links, mounts and cgroups of the project's containers and networks."""
    # docker0 is the engine's own; a bridge, veth or sandbox of the project would be listed beside it.
    links = {name for _, name in socket.if_nameindex()} - {"lo", "docker0", "sit0", "tunl0"}
    return [*sorted(links), *mounts_of_containers(), *cgroups_of_containers()]
