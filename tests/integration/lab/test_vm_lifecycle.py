"""A VM of the lab: its guest outlives the node's process, and ends with the VMI."""

import json
import subprocess
import sys
import time
from typing import Any

from lab.cli import commands
from lab.namespaces import control
from lab.node.guest_process import NICENESS
from lab.tools import LabTools
from tests.support.lab.process import DEADLINE, LabProcess

VM = "centos-stream9-1"


def test_guest_survives_node_restart_and_ends_with_its_vm(labs: list[LabProcess]) -> None:
    lab = labs[0]
    lab.bare = False
    code, output = lab.up()
    assert code == 0, output

    (first,) = guests(lab)
    if LabTools.find().accel == "tcg":
        assert inside(lab, "ps", "-o", "ni=", "-p", str(first["pid"])).strip() == str(NICENESS)
        assert inside(lab, "cat", f"/proc/{first['pid']}/autogroup").split()[1:] == ["nice", str(NICENESS)]
    assert commands.restart(lab.layout.dir, "node", lambda _line: None) == 0
    assert guests(lab) == [first]
    assert kubectl(lab, "get", "vmi", VM, "-o", "jsonpath={.status.conditions[0].status}") == "True"
    assert kubectl(lab, "get", "vmi", VM, "-o", "jsonpath={.metadata.uid}") == first["uid"]

    # A guest that ends by itself is started again, with a new VMI and a new pod.
    inside(lab, "kill", "-9", str(first["pid"]))
    # The VM is not ready only until its next guest has booted, which a command that begins now may not see any more.
    deadline = time.monotonic() + DEADLINE
    while kubectl(lab, "get", "vmi", VM, "--ignore-not-found", "-o", "jsonpath={.metadata.uid}") in ("", first["uid"]):
        assert time.monotonic() < deadline, "the VM has no new VMI"
    kubectl(lab, "wait", "vmi", VM, "--for=condition=Ready", f"--timeout={DEADLINE:g}s")
    kubectl(lab, "wait", "vm", VM, "--for=condition=Ready", "--timeout=60s")
    (second,) = guests(lab)
    assert second["uid"] != first["uid"]
    assert second["pod"] != first["pod"]

    kubectl(lab, "patch", "vm", VM, "--type=merge", "-p", json.dumps({"spec": {"running": False}}))
    kubectl(lab, "wait", "vmi", VM, "--for=delete", "--timeout=60s")
    assert kubectl(lab, "get", "pods", "-o", "name") == ""
    kubectl(lab, "wait", "vm", VM, "--for=jsonpath={.status.printableStatus}=Stopped", "--timeout=60s")
    assert guests(lab) == []
    assert inside(lab, "ls", "/run/netns") == ""
    assert "veth" not in inside(lab, "ls", "/sys/class/net")
    assert "qemu" not in inside(lab, "ps", "-e", "-o", "args")


def guests(lab: LabProcess) -> list[dict[str, Any]]:
    """Return the running guests, as `lab status` shows them."""
    (answer,) = control.request(lab.layout.control_socket, {"verb": "status"})
    return list(answer["guests"])


def kubectl(lab: LabProcess, *arguments: str) -> str:
    """Run kubectl; return its standard output."""
    argv = ["kubectl", "--kubeconfig", str(lab.layout.kubeconfig), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=DEADLINE + 30).stdout


def inside(lab: LabProcess, *command: str) -> str:
    """Run a command by `lab exec`; return its standard output."""
    code = "import sys; from pathlib import Path; from lab.cli import commands; "
    code += "sys.exit(commands.exec_(Path(sys.argv[1]), sys.argv[2:]))"
    argv = [sys.executable, "-c", code, str(lab.layout.dir), *command]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
