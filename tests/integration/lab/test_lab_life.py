"""A lab comes up, answers and goes, however it ends; the tier's own fixture sees to it that nothing is left."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from services.lab import commands, control, holder
from services.lab.tools import Tools
from tests.support.lab_process import LabProcess

pytestmark = pytest.mark.timeout(120)

CONTAINERD = """version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{address}"
"""


def test_a_lab_comes_up_answers_and_goes(labs: list[LabProcess]) -> None:
    lab = labs[0]
    code, said = lab.up()
    assert code == 0, said
    assert f"export KUBECONFIG={lab.layout.kubeconfig}" in said

    again, message = lab.up()
    assert again == 1
    assert "is running" in message
    assert "hotnic lab down" in message

    status: list[str] = []
    assert commands.status(lab.layout.dir, as_json=True, say=status.append) == 0, status
    components = json.loads(status[0])["components"]
    names = [c["name"] for c in components if c["state"] == "running"]
    assert names == ["apiserver", "nats", "containerd", "api", "controller", "networks", "multus", "handler", "node"]

    inside = partial(run_inside, lab)
    assert inside("cat", "/proc/1/cmdline").split("\0")[1:3] == ["-m", "services.lab.supervisor"]
    assert "hotnic-multus" in inside("ls", "/opt/cni/bin").split()
    assert inside("ls", "/etc/cni/net.d").split() == ["00-multus.conf", "10-lab.conflist"]
    assert inside("pwd").strip() == os.getcwd()
    kubectl = ["kubectl", "--kubeconfig", str(lab.layout.kubeconfig), "get", "nodes", "-o", "name"]
    assert subprocess.run(kubectl, capture_output=True, text=True, check=True).stdout == "node/lab\n"
    assert inside(*kubectl) == "node/lab\n"

    with socket.create_connection(("127.0.0.1", lab.identity.nats_port), timeout=5) as nats:
        assert nats.recv(4096).startswith(b"INFO ")

    kill_inside(lab, "controller")
    status.clear()
    assert commands.status(lab.layout.dir, say=status.append) == 1
    assert any("controller" in line and "EXITED" in line for line in status), status
    assert commands.restart(lab.layout.dir, "controller", status.append) == 0
    assert commands.status(lab.layout.dir, say=status.append) == 0

    assert "is down" in lab.down()
    assert commands.status(lab.layout.dir, say=status.append) == 1
    assert "was not running" in lab.down()


def test_two_labs_run_side_by_side_and_both_survive_nothing_of_a_kill(labs: list[LabProcess]) -> None:
    with labs[0].start() as first, labs[1].start() as second:
        said = [process.communicate()[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    one, two = labs
    assert one.identity.apiserver_port != two.identity.apiserver_port
    assert namespaces(one).isdisjoint(namespaces(two))

    kill(holder_child(one))
    assert not wait_dead(one)
    assert "was not running" in one.down()

    assert commands.status(two.layout.dir, say=lambda _line: None) == 0
    kill(two.identity.pid)
    assert not wait_dead(two)
    assert "was not running" in two.down()


def test_a_lab_that_cannot_start_says_why_and_leaves_nothing(labs: list[LabProcess]) -> None:
    lab = labs[0]
    code, said = lab.up(HOTNIC_LOG_LEVEL="loud")
    assert code == 1
    assert "HOTNIC_LOG_LEVEL" in said
    assert not holder.alive(lab.layout)
    assert sorted(os.listdir(lab.layout.dir)) == ["lock", "logs", "traces"]


def test_a_containerd_of_the_machine_is_not_disturbed(labs: list[LabProcess], tmp_path: Path) -> None:
    tools, lab = Tools.find(), labs[0]
    address = str(tmp_path / "containerd.sock")
    config = tmp_path / "containerd.toml"
    config.write_text(CONTAINERD.format(folder=tmp_path, address=address))
    log = tmp_path / "containerd.log"

    def known() -> str:
        client = [str(tools.ctr), "--address", address, "namespaces", "list"]
        return subprocess.run(client, capture_output=True, text=True, check=False, timeout=20).stdout

    with log.open("wb") as output:
        machine = subprocess.Popen([str(tools.containerd), "--config", str(config)], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 20
        while "NAME" not in known():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        client = [str(tools.ctr), "--address", address, "namespaces", "create", "of-the-machine"]
        subprocess.run(client, check=True, timeout=20)
        before = known()
        assert lab.up()[0] == 0
        assert known() == before
        assert "k8s.io" not in before
        assert "is down" in lab.down()
        assert known() == before
        assert machine.poll() is None
    finally:
        machine.terminate()
        machine.wait()


def test_down_where_no_lab_ever_was(tmp_path: Path) -> None:
    said: list[str] = []
    assert commands.down(tmp_path / "nowhere", said.append) == 0
    assert not (tmp_path / "nowhere").exists()
    assert said == [f"there is no lab in {tmp_path / 'nowhere'}"]


def run_inside(lab: LabProcess, *command: str) -> str:
    """Run a command by `lab exec`; its standard output."""
    code = "import sys; from pathlib import Path; from services.lab import commands; "
    code += "sys.exit(commands.exec_(Path(sys.argv[1]), sys.argv[2:]))"
    argv = [sys.executable, "-c", code, str(lab.layout.dir), *command]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout


def kill_inside(lab: LabProcess, component: str) -> None:
    """SIGKILL a role from inside, and wait until the supervisor has seen it."""
    (answer,) = control.request(lab.layout.control_socket, {"verb": "status"})
    (pid,) = [c["pid"] for c in answer["components"] if c["name"] == component]
    run_inside(lab, "kill", "-9", str(pid))
    while True:
        (answer,) = control.request(lab.layout.control_socket, {"verb": "status"})
        (state,) = [c["state"] for c in answer["components"] if c["name"] == component]
        if state == "exited":
            return


def holder_child(lab: LabProcess) -> int:
    """The supervisor's process id, as this process sees it."""
    return control.peer_pid(lab.layout.control_socket)


def namespaces(lab: LabProcess) -> set[str]:
    """The lab's mount, PID and network namespaces."""
    pid = holder_child(lab)
    return {os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("mnt", "net", "pid")}


def kill(pid: int) -> None:
    """SIGKILL a process and wait for its end."""
    watched = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
    finally:
        os.close(watched)


def wait_dead(lab: LabProcess) -> bool:
    """Wait until nobody holds the lab's lock; whether somebody still does."""
    try:
        os.close(holder.acquire(lab.layout, timeout=10.0))
    except holder.LabRunningError:
        return True
    return False
