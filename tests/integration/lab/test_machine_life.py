"""A virtual machine of the lab: its guest outlives the node's process, and goes with its object."""

import json
import subprocess
import sys
from typing import Any

import pytest

from services.lab import commands, control
from services.lab.node.machine import NICE
from services.lab.tools import Tools
from tests.support.lab_process import LabProcess

pytestmark = pytest.mark.timeout(150)

VM = "centos-stream9-1"


def test_a_machine_lives_is_restarted_and_goes(labs: list[LabProcess]) -> None:
    lab = labs[0]
    lab.bare = False
    code, said = lab.up()
    assert code == 0, said

    (first,) = guests(lab)
    if Tools.find().accel == "tcg":
        assert inside(lab, "ps", "-o", "ni=", "-p", str(first["pid"])).strip() == str(NICE)
        assert inside(lab, "cat", f"/proc/{first['pid']}/autogroup").split()[1:] == ["nice", str(NICE)]
    assert commands.restart(lab.layout.dir, "node", lambda _line: None) == 0
    assert guests(lab) == [first]
    assert kubectl(lab, "get", "vmi", VM, "-o", "jsonpath={.status.conditions[0].status}") == "True"
    assert kubectl(lab, "get", "vmi", VM, "-o", "jsonpath={.metadata.uid}") == first["uid"]

    # A guest that ends by itself is started again, as a new VMI in a new pod.
    inside(lab, "kill", "-9", str(first["pid"]))
    kubectl(lab, "wait", "vm", VM, "--for=condition=Ready=false", "--timeout=20s")
    kubectl(lab, "wait", "vm", VM, "--for=condition=Ready", "--timeout=60s")
    (second,) = guests(lab)
    assert second["uid"] != first["uid"]
    assert second["pod"] != first["pod"]

    kubectl(lab, "patch", "vm", VM, "--type=merge", "-p", json.dumps({"spec": {"running": False}}))
    kubectl(lab, "wait", "vmi", VM, "--for=delete", "--timeout=30s")
    assert kubectl(lab, "get", "pods", "-o", "name") == ""
    assert kubectl(lab, "get", "vm", VM, "-o", "jsonpath={.status.printableStatus}") == "Stopped"
    assert guests(lab) == []
    assert inside(lab, "ls", "/run/netns") == ""
    assert "veth" not in inside(lab, "ls", "/sys/class/net")
    assert "qemu" not in inside(lab, "ps", "-e", "-o", "args")


def guests(lab: LabProcess) -> list[dict[str, Any]]:
    """The guests that run, as `lab status` shows them."""
    (answer,) = control.request(lab.layout.control_socket, {"verb": "status"})
    return list(answer["guests"])


def kubectl(lab: LabProcess, *arguments: str) -> str:
    """Run kubectl; its standard output."""
    argv = ["kubectl", "--kubeconfig", str(lab.layout.kubeconfig), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=90).stdout


def inside(lab: LabProcess, *command: str) -> str:
    """Run a command by `lab exec`; its standard output."""
    code = "import sys; from pathlib import Path; from services.lab import commands; "
    code += "sys.exit(commands.exec_(Path(sys.argv[1]), sys.argv[2:]))"
    argv = [sys.executable, "-c", code, str(lab.layout.dir), *command]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout
