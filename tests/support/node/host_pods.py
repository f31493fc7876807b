"""Run the container of a pod as a process of this machine, as scheduler and kubelet would run it in a container.

The process has the arguments and the environment of the pod, and a token of the pod's ServiceAccount that is bound to
the pod. The pod's address is on a bridge of this network namespace. The pod becomes Ready when its readiness probe
succeeds, so the real controllers publish its address.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.support.interop.releases import NODE
from tests.support.kube.control_plane import STOP_DEADLINE, ControlPlane, Object, until

BRIDGE = "hotnic-pods"
HOTNIC = Path(sys.executable).parent / "hotnic"


@contextlib.contextmanager
def pod_network() -> Iterator[None]:
    """Provide the bridge with the addresses of pods, and delete it at the end."""
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "link", "set", BRIDGE, "up"], check=True)
        yield
    finally:
        subprocess.run(["ip", "link", "delete", BRIDGE], check=True)


@contextlib.contextmanager
def host_pod(cluster: ControlPlane, pod: Object, address: str, directory: Path) -> Iterator[Path]:
    """Run a pod with one container until the end of the block; yield the file with its log.

    :param address: the pod's address.
    """
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", BRIDGE], check=True)
    bind(cluster, pod)
    set_status(cluster, pod, address, ready=False)
    pod = cluster.get("pod", name, "--namespace", namespace)
    [container] = pod["spec"]["containers"]
    log = directory / f"{name}.log"
    environment = variables(pod, container["env"])
    process_environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.devnull,
        "KUBECONFIG": str(token_kubeconfig(cluster, pod, directory)),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(HOTNIC), *container["args"]], stdout=output, stderr=output, env=process_environment | environment
        )
    try:
        port = environment["HOTNIC_HEALTH_LISTEN"].partition(",")[0]
        url = f"http://{port}{container['readinessProbe']['httpGet']['path']}"

        def ready() -> bool:
            assert process.poll() is None, f"{name} ended:\n{log.read_text()[-4000:]}"
            return responds(url)

        until(ready, lambda: f"{name} is ready:\n{log.read_text()[-4000:]}")
        set_status(cluster, pod, address, ready=True)
        yield log
    finally:
        process.terminate()
        process.wait(STOP_DEADLINE)
        # As the kubelet confirms a deletion; the workload gets another pod, which does not run.
        cluster.kubectl("delete", "pod", name, "--namespace", namespace, "--grace-period=0", "--force")


def responds(url: str) -> bool:
    """Return whether a probe of a URL succeeds."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        pass
    return False


def variables(pod: Object, entries: list[Object]) -> dict[str, str]:
    """Return a container's environment as the kubelet makes it from the pod's spec."""
    found: dict[str, str] = {}
    for entry in entries:
        text = entry.get("value", "")
        if "valueFrom" in entry:
            value: object = pod
            for part in entry["valueFrom"]["fieldRef"]["fieldPath"].split("."):
                assert isinstance(value, dict)
                value = value[part]
            text = str(value)
        found[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda match: found.get(match[1], match[0]), text)
    return found


def token_kubeconfig(cluster: ControlPlane, pod: Object, directory: Path) -> Path:
    """Write a kubeconfig with a token of the pod's ServiceAccount, bound to the pod."""
    metadata, account = pod["metadata"], pod["spec"]["serviceAccountName"]
    token = cluster.kubectl(
        *("create", "token", account, "--namespace", metadata["namespace"], "--duration=1h"),
        *("--bound-object-kind=Pod", f"--bound-object-name={metadata['name']}"),
        f"--bound-object-uid={metadata['uid']}",
    )
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token.strip()}
    config["contexts"][0]["context"]["namespace"] = metadata["namespace"]
    path = directory / f"{metadata['name']}.kubeconfig"
    path.touch(0o600)
    path.write_text(json.dumps(config))
    return path


def bind(cluster: ControlPlane, pod: Object) -> None:
    """Bind a pod to the node as the scheduler does."""
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/binding"
    cluster.kubectl("create", "--raw", path, "--filename", "-", stdin=json.dumps(binding))


def set_status(cluster: ControlPlane, pod: Object, address: str, *, ready: bool) -> None:
    """Write the status of a running pod as the kubelet does."""
    state = "True" if ready else "False"
    status = {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": kind, "status": state} for kind in ("Ready", "ContainersReady")],
    }
    metadata = pod["metadata"]
    cluster.kubectl(
        *("patch", "pod", metadata["name"], "--namespace", metadata["namespace"], "--subresource=status"),
        *("--type=merge", "--patch", json.dumps({"status": status})),
    )
