"""Sandboxes that multus-cni created: only its files on the node describe them."""

import base64
import json
from pathlib import Path
from typing import Any

from schemas.kubernetes.networks import NETWORKS
from services.multus.records.sandbox import AttachmentOrigin
from tests.support.node import netns as namespaces
from tests.support.node.cni import RecordingPlugin, bridge_config, leases
from tests.support.node.multus_daemon import POD, POD_UID, SANDBOX, Daemon

IFACE = "pod7e0055a6880"
HASH = IFACE.removeprefix("pod")


def encoded(config: dict[str, Any]) -> str:
    return base64.b64encode(json.dumps(config).encode()).decode()


def write_upstream_files(daemon: Daemon, netns: Path, delegates: list[str]) -> None:
    """Replace the record by multus-cni's files; attachments not in ``delegates`` count as hot-plugged."""
    record = daemon.record()
    assert record is not None
    results = daemon.config.cni_dir / "results"
    results.mkdir(exist_ok=True)
    for one in record.attachments:
        cached = {
            "kind": "cniCacheV1",
            "containerId": SANDBOX,
            "config": encoded(json.loads(one.config)),
            "ifName": one.ifname,
            "networkName": one.network_name,
            "netns": str(netns),
            "cniArgs": [
                ["IgnoreUnknown", "true"],
                ["K8S_POD_NAMESPACE", "default"],
                ["K8S_POD_NAME", POD],
                ["K8S_POD_UID", POD_UID],
            ],
            "capabilityArgs": dict(one.runtime),
            "result": json.loads(json.dumps({"cniVersion": "1.0.0"})),
        }
        (results / f"{one.network_name}-{SANDBOX}-{one.ifname}").write_text(json.dumps(cached))
    listed = [
        {
            "Conf": {},
            "Name": one.network,
            "ifnameRequest": "" if one.ifname == "eth0" else one.ifname,
            "Bytes": encoded(json.loads(one.config)),
        }
        for one in record.attachments
        if one.ifname in delegates
    ]
    (daemon.config.cni_dir / SANDBOX).write_text(json.dumps(listed))
    for path in (daemon.config.cni_dir / "sandboxes").iterdir():
        path.unlink()


async def create_upstream_sandbox(daemon: Daemon, netns: Path) -> None:
    """Create a sandbox of multus-cni with a primary, an annotated and a hot-plugged network."""
    daemon.pod({NETWORKS: "blue"})
    daemon.nad("blue", bridge_config(daemon.folder))
    assert (await daemon.cni("ADD", netns))[0] == 200
    assert (await daemon.delegate("ADD", netns, IFACE, bridge_config(daemon.folder)))[0] == 200
    await daemon.records.flush()
    write_upstream_files(daemon, netns, ["eth0", "net1"])
    assert daemon.record() is None


async def test_del_after_adoption_cleans_everything(daemon: Daemon, sandbox_netns: Path) -> None:
    await create_upstream_sandbox(daemon, sandbox_netns)
    await daemon.adoption.adopt_all()
    record = daemon.record()
    assert record is not None
    assert [(a.ifname, a.network, a.origin) for a in record.attachments] == [
        ("eth0", "pods", AttachmentOrigin.CLUSTER),
        ("net1", "default/blue", AttachmentOrigin.NETWORKS),
        (IFACE, "blue", AttachmentOrigin.DELEGATE),
    ]
    assert all(a.ifindex > 1 and a.kind == "veth" and a.mac for a in record.attachments)
    # A repeated ADD finds the same attachment, and a hot-unplug works.
    assert (await daemon.delegate("ADD", sandbox_netns, IFACE, bridge_config(daemon.folder)))[0] == 200
    assert await daemon.delegate("DEL", sandbox_netns, IFACE, {}) == (200, None)
    assert len(leases(daemon.folder)) == 1
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert leases(daemon.folder) == []
    assert leases(daemon.folder, "pods") == []
    assert not (daemon.config.cni_dir / SANDBOX).exists()
    assert list((daemon.config.cni_dir / "results").iterdir()) == []


async def test_del_of_a_sandbox_not_adopted_yet_reads_upstreams_files(daemon: Daemon, sandbox_netns: Path) -> None:
    await create_upstream_sandbox(daemon, sandbox_netns)
    # A torn file of delegates (upstream does not fsync it) does not matter: libcni's cache has the same.
    (daemon.config.cni_dir / SANDBOX).write_bytes(b'[{"Conf":{"cniVer')
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert leases(daemon.folder) == []
    assert leases(daemon.folder, "pods") == []
    assert list((daemon.config.cni_dir / "results").iterdir()) == []


async def test_a_link_in_use_is_guarded_after_adoption(daemon: Daemon, sandbox_netns: Path) -> None:
    await create_upstream_sandbox(daemon, sandbox_netns)
    for arguments in (
        f"link set {IFACE} down",
        f"link set {IFACE} name {HASH}-nic",
        f"link add k6t-{HASH} type bridge",
        f"link set {HASH}-nic master k6t-{HASH}",
        f"link add {IFACE} type bridge",
    ):
        namespaces.ip(sandbox_netns, *arguments.split())
    status, error = await daemon.delegate("DEL", sandbox_netns, IFACE, {})
    assert (status, error["code"]) == (400, 11)
    record = daemon.record()
    assert record is not None
    assert record.attachments[-1].kind == "veth"
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    links = json.loads(namespaces.ip(sandbox_netns, "-j", "link"))
    # The in-pod bridge belongs to the guest and ends with the namespace; the networks' links and leases are gone.
    assert {link["ifname"] for link in links} == {"lo", f"k6t-{HASH}"}
    assert leases(daemon.folder) == []


async def test_a_sandbox_that_was_gone_before_adoption_is_deleted(
    daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    await create_upstream_sandbox(daemon, sandbox_netns)
    namespaces.remove(sandbox_netns)
    await daemon.adoption.adopt_all()
    assert await daemon.sweep.run_once() == 1
    assert leases(daemon.folder) == []
    assert leases(daemon.folder, "pods") == []
    assert not (daemon.config.cni_dir / SANDBOX).exists()
