"""A lab starts, serves requests and stops, whatever ends it; the fixture checks that nothing is left."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from lab.cli import commands
from lab.namespaces import control, holder
from lab.tools import LabTools
from tests.support.lab.process import LabProcess

CONTAINERD = """version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{address}"
"""


def test_lab_starts_serves_and_stops(labs: list[LabProcess]) -> None:
    lab = labs[0]
    code, output = lab.up()
    assert code == 0, output
    assert f"export KUBECONFIG={lab.layout.kubeconfig}" in output
    assert f"export NATS_URL=tls://127.0.0.1:{lab.identity.nats_port} NATS_CA=" in output
    assert f" NATS_NKEY={lab.layout.nats_seed()}" in output

    again, message = lab.up()
    assert again == 1
    assert "is already running" in message
    assert "hotnic lab down" in message

    status: list[str] = []
    assert commands.status(lab.layout.dir, as_json=True, output=status.append) == 0, status
    components = json.loads(status[0])["components"]
    names = [c["name"] for c in components if c["state"] == "running"]
    assert names == ["apiserver", "nats", "containerd", "api", "controller", "networks", "multus", "handler", "node"]

    inside = partial(run_inside, lab)
    assert inside("cat", "/proc/1/cmdline").split("\0")[1:3] == ["-m", "lab.supervisor"]
    assert "hotnic-multus" in inside("ls", "/opt/cni/bin").split()
    assert inside("ls", "/etc/cni/net.d").split() == ["00-multus.conf", "10-lab.conflist"]
    assert inside("pwd").strip() == os.getcwd()
    kubectl = ["kubectl", "--kubeconfig", str(lab.layout.kubeconfig), "get", "nodes", "-o", "name"]
    assert subprocess.run(kubectl, capture_output=True, text=True, check=True).stdout == "node/lab\n"
    assert inside(*kubectl) == "node/lab\n"

    with socket.create_connection(("127.0.0.1", lab.identity.nats_port), timeout=45) as nats:
        assert nats.recv(4096).startswith(b"INFO ")

    kill_inside(lab, "controller")
    status.clear()
    assert commands.status(lab.layout.dir, output=status.append) == 1
    assert any("controller" in line and "EXITED" in line for line in status), status
    assert commands.restart(lab.layout.dir, "controller", status.append) == 0
    assert commands.status(lab.layout.dir, output=status.append) == 0

    assert "is down" in lab.down()
    assert commands.status(lab.layout.dir, output=status.append) == 1
    assert "was not running" in lab.down()


def test_two_labs_are_independent_and_a_kill_leaves_nothing(labs: list[LabProcess]) -> None:
    with labs[0].start() as first, labs[1].start() as second:
        output = [process.communicate()[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), output
    one, two = labs
    assert one.identity.apiserver_port != two.identity.apiserver_port
    assert namespaces(one).isdisjoint(namespaces(two))

    kill(holder_child(one))
    assert not wait_dead(one)
    assert "was not running" in one.down()

    assert commands.status(two.layout.dir, output=lambda _line: None) == 0
    kill(two.identity.pid)
    assert not wait_dead(two)
    assert "was not running" in two.down()


def test_failed_start_reports_reason_and_leaves_nothing(labs: list[LabProcess]) -> None:
    lab = labs[0]
    code, output = lab.up(HOTNIC_LOG_LEVEL="loud")
    assert code == 1
    assert "HOTNIC_LOG_LEVEL" in output
    assert not holder.is_running(lab.layout)
    assert sorted(os.listdir(lab.layout.dir)) == ["lock", "logs", "traces"]


def test_containerd_of_the_machine_is_not_disturbed(labs: list[LabProcess], tmp_path: Path) -> None:
    tools, lab = LabTools.find(), labs[0]
    address = str(tmp_path / "containerd.sock")
    config = tmp_path / "containerd.toml"
    config.write_text(CONTAINERD.format(folder=tmp_path, address=address))
    log = tmp_path / "containerd.log"

    def containerd_namespaces() -> str:
        client = [str(tools.ctr), "--address", address, "namespaces", "list"]
        return subprocess.run(client, capture_output=True, text=True, check=False, timeout=60).stdout

    with log.open("wb") as output:
        machine = subprocess.Popen([str(tools.containerd), "--config", str(config)], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while "NAME" not in containerd_namespaces():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        client = [str(tools.ctr), "--address", address, "namespaces", "create", "of-the-machine"]
        subprocess.run(client, check=True, timeout=60)
        before = containerd_namespaces()
        assert lab.up()[0] == 0
        assert containerd_namespaces() == before
        assert "k8s.io" not in before
        assert "is down" in lab.down()
        assert containerd_namespaces() == before
        assert machine.poll() is None
    finally:
        machine.terminate()
        machine.wait()


def test_down_without_a_lab_does_nothing(tmp_path: Path) -> None:
    output: list[str] = []
    assert commands.down(tmp_path / "nowhere", output.append) == 0
    assert not (tmp_path / "nowhere").exists()
    assert output == [f"there is no lab in {tmp_path / 'nowhere'}"]


def run_inside(lab: LabProcess, *command: str) -> str:
    """Run a command by `lab exec`; return its standard output."""
    code = "import sys; from pathlib import Path; from lab.cli import commands; "
    code += "sys.exit(commands.exec_(Path(sys.argv[1]), sys.argv[2:]))"
    argv = [sys.executable, "-c", code, str(lab.layout.dir), *command]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout


def kill_inside(lab: LabProcess, component: str) -> None:
    """SIGKILL a role from inside, and return when the supervisor has reaped it."""
    (answer,) = control.request(lab.layout.control_socket, {"verb": "status"})
    (pid,) = [c["pid"] for c in answer["components"] if c["name"] == component]
    run_inside(lab, "kill", "-9", str(pid))
    while True:
        (answer,) = control.request(lab.layout.control_socket, {"verb": "status"})
        (state,) = [c["state"] for c in answer["components"] if c["name"] == component]
        if state == "exited":
            return


def holder_child(lab: LabProcess) -> int:
    """Return the supervisor's process id in this process' PID namespace."""
    return control.peer_pid(lab.layout.control_socket)


def namespaces(lab: LabProcess) -> set[str]:
    """Return the lab's mount, PID and network namespaces."""
    pid = holder_child(lab)
    return {os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("mnt", "net", "pid")}


def kill(pid: int) -> None:
    """SIGKILL a process."""
    watched = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
    finally:
        os.close(watched)


def wait_dead(lab: LabProcess) -> bool:
    """Wait until no process holds the lab's lock; return whether one still does after 10 s."""
    try:
        os.close(holder.acquire(lab.layout, timeout=60.0))
    except holder.LabRunningError:
        return True
    return False
