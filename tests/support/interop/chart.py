"""The Helm chart as rendered by the real helm, and the sets of values with which its tests render it."""

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.support.interop.tools import tool

CHECKOUT = Path(__file__).resolve().parents[3]
CHART = CHECKOUT / "k8s"
TESTS = CHECKOUT / "tests" / "interop" / "chart"
GOLDEN = TESTS / "golden"

KUBERNETES = {"oldest": "v1.30.14", "newest": "v1.36.3"}
"""The oldest and the newest Kubernetes that the chart supports."""
NATS = "nats.url=nats://nats.nats:4222"
PRESETS = ("kubeadm", "k3s", "rke2", "openshift", "talos")
CHOICES = ("multus", "multus-and-networks", "beside-kubevirt", "everything")
ROLES = ("api", "controller", "networks", "multus", "handler")


def _choice(name: str) -> list[str]:
    return ["--values", str(CHART / "choices" / f"{name}.yaml")]


def _preset(name: str) -> list[str]:
    return [*_choice("everything"), "--values", str(CHART / "presets" / f"{name}.yaml"), "--set", NATS]


VALUE_SETS: dict[str, list[str]] = {
    "multus": _choice("multus"),
    "multus-and-networks": _choice("multus-and-networks"),
    "beside-kubevirt": [*_choice("beside-kubevirt"), "--set", NATS],
    "everything": [*_choice("everything"), "--set", NATS],
    "one-process": [*_choice("everything"), "--set", NATS, "--set", "node.process=single"],
    "auth-callout": ["--values", str(TESTS / "values" / "auth-callout.yaml")],
    "upstream-multus": ["--values", str(TESTS / "values" / "upstream-multus.yaml")],
    "all-options": ["--values", str(TESTS / "values" / "all-options.yaml")],
    **{preset: _preset(preset) for preset in PRESETS},
}
"""The arguments of helm for each set of values that has a golden file."""


def helm(*arguments: str, program: str = "helm", check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run helm; a failure fails the test with helm's message.

    :param program: ``helm`` (version 4) or ``helm3``.
    """
    done = subprocess.run(
        [str(tool(program)), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


@functools.cache
def render(*arguments: str, program: str = "helm", version: str = KUBERNETES["newest"]) -> str:
    """Return the manifests of the chart, hooks included.

    :param arguments: helm's arguments for the values.
    :param version: the version of the cluster.
    """
    command = ["template", "hotnic", str(CHART), "--namespace", "hotnic", "--kube-version", version, *arguments]
    return helm(*command, program=program).stdout


def objects(text: str) -> list[dict[str, Any]]:
    """Return the objects of a rendered text."""
    return [item for item in yaml.load_all(text, yaml.CSafeLoader) if item]


def rendered(name: str) -> list[dict[str, Any]]:
    """Return the objects of a set of values."""
    return objects(render(*VALUE_SETS[name]))


def find(found: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """Return the one object of a kind and name."""
    matching = [item for item in found if item["kind"] == kind and item["metadata"]["name"] == name]
    assert len(matching) == 1, f"{len(matching)} objects {kind} {name}"
    return matching[0]


def pod_specs(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return every pod's spec by the name of its object, that of the pods which the uninstall hook creates included."""
    specs: dict[str, dict[str, Any]] = {}
    for item in found:
        name = item["metadata"]["name"]
        if item["kind"] in ("Deployment", "DaemonSet", "Job"):
            specs[name] = item["spec"]["template"]["spec"]
        elif item["kind"] == "Pod":
            specs[name] = item["spec"]
        elif item["kind"] == "ConfigMap" and "pod.json" in item["data"]:
            specs[f"{name}-node"] = json.loads(item["data"]["pod.json"])["spec"]
    return specs


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all containers of a pod."""
    return [*spec.get("initContainers", []), *spec["containers"]]
