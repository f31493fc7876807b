"""kubectl get -w and kubectl wait."""

import subprocess
import threading

from tests.cluster.tools import DEADLINE, CustomKind, Kubectl


def lines_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Return output lines up to the first that contains a text; kill the process at the deadline."""
    assert process.stdout is not None
    timer = threading.Timer(DEADLINE, process.kill)
    timer.start()
    found = []
    try:
        for line in process.stdout:
            found.append(line)
            if text in line:
                return found
    finally:
        timer.cancel()
    raise AssertionError(f"{text!r} was not printed: {found}")


def terminate(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.communicate(timeout=DEADLINE)


def test_get_watch_prints_every_change_as_a_row(kubectl: Kubectl, unique: str) -> None:
    """kubectl get -w: the table first, then one row for each change, without another header."""
    kubectl("create", "configmap", f"{unique}-a")
    process = kubectl.start("get", "configmap", "-w")
    try:
        lines_until(process, f"{unique}-a")
        kubectl("create", "configmap", f"{unique}-b", "--from-literal=x=1", "--from-literal=y=2")
        row = lines_until(process, f"{unique}-b")[-1]
        assert row.split()[:2] == [f"{unique}-b", "2"]
        kubectl("patch", "configmap", f"{unique}-b", "-p", '{"data":{"z":"3"}}')
        assert lines_until(process, f"{unique}-b")[-1].split()[1] == "3"
    finally:
        terminate(process)


def test_get_watch_of_a_custom_kind_prints_its_columns(kubectl: Kubectl, widgets: CustomKind, unique: str) -> None:
    """additionalPrinterColumns apply to watches too."""
    kubectl("create", "-f", "-", stdin=widgets.make(unique))
    process = kubectl.start("get", widgets.crd, unique, "-w")
    try:
        assert lines_until(process, unique)[0].split() == ["NAME", "SIZE", "PHASE", "AGE"]
        kubectl("patch", widgets.crd, unique, "--type=merge", "-p", '{"status":{"phase":"Busy"}}')
        assert lines_until(process, "Busy")[-1].split()[:3] == [unique, "1", "Busy"]
    finally:
        terminate(process)


def test_get_watch_as_json_with_a_selector(kubectl: Kubectl, unique: str) -> None:
    """A watch with a label selector reports an object that leaves the selection as DELETED (API concepts, watch)."""
    kubectl("create", "configmap", unique)
    template = "--template={{.type}} {{.object.metadata.name}}\n"
    options = ("-l", f"in={unique}", "-w", "--output-watch-events", "-o", "go-template", template)
    process = kubectl.start("get", "configmap", *options)
    try:
        kubectl("label", "configmap", unique, f"in={unique}")
        assert lines_until(process, unique)[-1] == f"ADDED {unique}\n"
        kubectl("annotate", "configmap", unique, "a=b")
        assert lines_until(process, unique)[-1] == f"MODIFIED {unique}\n"
        kubectl("label", "configmap", unique, "in-")
        assert lines_until(process, unique)[-1] == f"DELETED {unique}\n"
    finally:
        terminate(process)


def test_wait_for_a_condition(kubectl: Kubectl, widgets: CustomKind, unique: str) -> None:
    """kubectl wait --for=jsonpath watches one object by its name (fieldSelector metadata.name)."""
    kubectl("create", "-f", "-", stdin=widgets.make(unique))
    process = kubectl.start("wait", "--for=jsonpath={.status.phase}=Done", f"{widgets.crd}/{unique}", "--timeout=20s")
    kubectl("patch", widgets.crd, unique, "--type=merge", "-p", '{"status":{"phase":"Done"}}')
    assert "condition met" in process.communicate(timeout=DEADLINE)[0]


def test_wait_for_deletion(kubectl: Kubectl, unique: str) -> None:
    """kubectl wait --for=delete ends when the object is deleted."""
    kubectl("create", "configmap", unique)
    process = kubectl.start("wait", "--for=delete", f"configmap/{unique}", "--timeout=20s")
    kubectl("delete", "configmap", unique)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    kubectl("get", "configmap", unique, fails=True)


def test_wait_without_its_condition_fails_at_timeout(kubectl: Kubectl, unique: str) -> None:
    """kubectl wait exits with 1 at its timeout."""
    kubectl("create", "configmap", unique)
    rejected = kubectl("wait", "--for=jsonpath={.data.a}=b", f"configmap/{unique}", "--timeout=300ms", fails=True)
    assert "timed out waiting for the condition" in rejected.stderr


def test_delete_waits_for_finalizers(kubectl: Kubectl, unique: str) -> None:
    """Finalizers: a deleted object remains, with a deletionTimestamp, until its last finalizer is removed."""
    with_finalizer = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": unique, "finalizers": ["test.hotnic.io/hold"]},
    }
    kubectl("create", "-f", "-", stdin=with_finalizer)
    process = kubectl.start("delete", "configmap", unique)
    kubectl("wait", "--for=jsonpath={.metadata.deletionGracePeriodSeconds}=0", f"configmap/{unique}", "--timeout=20s")
    assert process.poll() is None
    kubectl("patch", "configmap", unique, "--type=json", "-p", '[{"op":"remove","path":"/metadata/finalizers"}]')
    assert "deleted" in process.communicate(timeout=DEADLINE)[0]
    kubectl("get", "configmap", unique, fails=True)
