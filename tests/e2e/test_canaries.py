"""A lab with a secret planted in every input: no output of any process, command or object of hotnic's has one.

The lab's own secrets, its tokens and private keys, are searched for too. Every file that does contain a secret can be
read by root only.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.layout import HEALTH_PORTS
from lab.tools import PAUSE_IMAGE
from tests.support.lab.doctor import assert_no_findings
from tests.support.lab.running import SAMPLE_NAD, SAMPLE_VM, Lab, environment, running_lab, wait_until

pytestmark = pytest.mark.timeout(600)

CANARY = "hotnicCanary"
PROXY = f"http://user:{CANARY}-proxy@127.0.0.1:9"
INHERITED = {
    "HOTNIC_LOG_LEVEL": "debug",
    "HTTP_PROXY": PROXY,
    "HTTPS_PROXY": PROXY,
    "ALL_PROXY": PROXY,
    "NATS_TOKEN": f"{CANARY}-environment",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}-environment",
}
"""The environment of `hotnic lab up`."""

LEAKY = """#!/bin/sh
[ "$CNI_COMMAND" != DEL ] || exit 0
input=$(cat)
echo "cannot use $input" >&2
env >&2
cat <<END
{"code": 101, "msg": "no lease from https://root:CANARY-url@127.0.0.1:2379/v3?token=CANARY-query",
 "details": "password CANARY-password, token CANARY-token"}
END
exit 1
""".replace("CANARY", CANARY)
"""A plugin that quotes its configuration, its environment and an address."""

SECRET_CONFIG = {
    "etcd": {"endpoints": [f"https://root:{CANARY}-url@127.0.0.1:2379"], "password": f"{CANARY}-password"},
    "authToken": f"{CANARY}-token",
}
ENVIRONMENTS = """
import os, pathlib
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        if process.name not in ("1", str(os.getpid())) and b"CANARY" in (process / "environ").read_bytes():
            print((process / "cmdline").read_bytes().replace(b"\\0", b" ").decode())
    except OSError:
        pass
""".replace("CANARY", CANARY)
METRICS = """
import sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for port in sys.argv[1:]:
    for path in ("metrics", "readyz"):
        print(opener.open(f"http://127.0.0.1:{port}/{path}", timeout=30).read().decode())
"""


@pytest.fixture(scope="module")
def planted() -> Iterator[Lab]:
    """A lab in whose environment there are secrets, and whose roles log everything."""
    directory = Path(tempfile.mkdtemp(prefix="hotnic-e2e-canaries-"))
    with environment(**INHERITED), running_lab(directory, guests="double") as running:
        yield running
    shutil.rmtree(directory)


def nad(lab: Lab, name: str, config: dict[str, Any]) -> None:
    manifest = {
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"config": json.dumps(config)},
    }
    lab.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))


def pod(lab: Lab, name: str, network: str) -> None:
    element = {"name": network, "cni-args": {"password": f"{CANARY}-cni-args"}}
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "annotations": {"k8s.v1.cni.cncf.io/networks": json.dumps([element])},
        },
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": PAUSE_IMAGE}]},
    }
    lab.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))


def plug(lab: Lab, interface: str, network: str, *options: str) -> str:
    done = lab.hotnic(
        "addinterface", SAMPLE_VM, "--name", interface, "--network-attachment-definition-name", network, *options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def events(lab: Lab) -> str:
    return lab.kubectl("get", "events", "--all-namespaces", "-o", "json")


def own_secrets(lab: Lab) -> set[str]:
    """Return the tokens and private keys of the lab: parts of them that stand in one line."""
    found: set[str] = set()
    for path in (lab.layout.kubeconfig, *lab.layout.config.glob("*.kubeconfig")):
        for user in yaml.safe_load(path.read_text())["users"]:
            found |= {user["user"][key] for key in ("token", "client-key-data", "password") if key in user["user"]}
    for path in lab.layout.dir.rglob("*.key"):
        found.add(path.read_text().splitlines()[1])
    for path in (*lab.layout.dir.rglob("*.creds"), *lab.layout.dir.rglob("*.nk")):
        found |= set(re.findall(r"\bS[ACNOUX][A-Z2-7]{56}\b", path.read_text()))
    return found


def outputs(lab: Lab, vm: str) -> Iterator[tuple[str, str]]:
    """Yield everything that the lab's processes and hotnic's commands have written or print."""
    for folder in (lab.layout.logs, lab.layout.traces):
        for path in folder.iterdir():
            yield path.name, path.read_text(errors="replace")
    yield "events", events(lab)
    yield "metrics", lab.run_inside("python3", "-c", METRICS, *map(str, HEALTH_PORTS.values()))
    nats = ("--nats-url", lab.nats_url.replace("//", f"//user:{CANARY}-nats@"))
    for command in (
        ("status", vm, "-o", "json"),
        ("events", vm, "-o", "json"),
        ("events", vm, "-o", "json", *nats),
        ("doctor", "-o", "json", *nats),
        ("dead-letter", "list", *nats),
        ("trace", vm),
        ("lab", "status"),
        ("status", "no-such-vm"),
        ("addinterface", vm, "--name", f"x?token={CANARY}", "--network-attachment-definition-name", "a"),
    ):
        done = lab.hotnic(*command)
        shown = done.stdout + done.stderr
        # What the user typed may be repeated to him.
        yield " ".join(command[:2]), shown.replace(f"x?token={CANARY}", "")


def test_no_output_has_a_secret(planted: Lab) -> None:
    lab = planted
    plugin = lab.layout.node_state / "cni-bin" / "leaky"
    plugin.write_text(LEAKY)
    plugin.chmod(0o755)
    nad(lab, "leaky", {"cniVersion": "1.0.0", "type": "leaky", **SECRET_CONFIG})
    # A plugin that works ignores keys that it does not know.
    sample = json.loads(json.loads(lab.kubectl("get", "net-attach-def", SAMPLE_NAD, "-o", "json"))["spec"]["config"])
    nad(lab, "quiet", {**sample, **SECRET_CONFIG})
    cloud_init = {"name": "init", "cloudInitNoCloud": {"userData": f"#cloud-config\npassword: {CANARY}-cloud-init\n"}}
    lab.edit_template(SAMPLE_VM, ("add", "/volumes", [cloud_init]))

    plug(lab, "working", "quiet", "--wait")
    # The runtime passes on what the plugin says, too.
    pod(lab, "canary-pod", "leaky")
    log = lab.layout.log("multus")
    wait_until(
        lambda: any("call failed" in line and "default/canary-pod" in line for line in log.read_text().splitlines())
    )
    with environment(NATS_URL=f"nats://user:{CANARY}-nats@127.0.0.1:1"):
        plug(lab, "broken", "leaky")
        wait_until(lambda: "FailedAddingInterface" in events(lab))
        secrets = {CANARY, *own_secrets(lab)}
        found = [
            (place, line[:600])
            for place, text in outputs(lab, SAMPLE_VM)
            if any(secret in text for secret in secrets)
            for line in text.splitlines()
            if any(secret in line for secret in secrets)
        ]
    assert not found, "\n".join(f"{place}: {line}" for place, line in found[:20])
    assert "***" in events(lab), "the plugin's text is shown, without its secrets"
    assert lab.run_inside("python3", "-c", ENVIRONMENTS) == "", "a process of the lab has inherited a secret"

    wanted = [secret.encode() for secret in secrets]
    readable = {path for path in readable_files(lab.layout.dir) if any(one in path.read_bytes() for one in wanted)}
    assert readable <= {plugin}, readable

    lab.kubectl("delete", "pod", "canary-pod")
    assert lab.hotnic("removeinterface", SAMPLE_VM, "--name", "broken", "--wait").returncode == 0
    assert lab.hotnic("removeinterface", SAMPLE_VM, "--name", "working", "--wait").returncode == 0
    assert_no_findings(lab)


def readable_files(folder: Path) -> Iterator[Path]:
    """Yield the regular files below a folder that another user than its owner can read."""
    for path in folder.iterdir():
        if path.is_symlink() or not path.stat().st_mode & 0o005:
            continue
        if path.is_dir():
            yield from readable_files(path)
        elif path.is_file():
            yield path
