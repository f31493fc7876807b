"""Sandboxes that multus-cni has made: its files on the node are all that tells of them."""

import base64
import json
from pathlib import Path
from typing import Any

from schemas.networks import NETWORKS
from services.multus.records import Owner
from tests.support import netns as namespaces
from tests.support.cni import RecordingPlugin, bridge_config, leases
from tests.support.multus_daemon import POD, POD_UID, SANDBOX, Daemon

IFACE = "pod7e0055a6880"
HASH = IFACE.removeprefix("pod")


def encoded(config: dict[str, Any]) -> str:
    return base64.b64encode(json.dumps(config).encode()).decode()


def as_upstream_leaves_it(daemon: Daemon, netns: Path, delegates: list[str]) -> None:
    """Turn our record into multus-cni's files; attachments that are no delegates were hot-plugged."""
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


async def made(daemon: Daemon, netns: Path) -> None:
    """A sandbox with a primary, an annotated and a hot-plugged network."""
    daemon.pod({NETWORKS: "blue"})
    daemon.nad("blue", bridge_config(daemon.folder))
    assert (await daemon.cni("ADD", netns))[0] == 200
    assert (await daemon.delegate("ADD", netns, IFACE, bridge_config(daemon.folder)))[0] == 200
    await daemon.records.settled()
    as_upstream_leaves_it(daemon, netns, ["eth0", "net1"])
    assert daemon.record() is None


async def test_del_after_the_switch_from_multus_cni_cleans_everything(daemon: Daemon, sandbox_netns: Path) -> None:
    await made(daemon, sandbox_netns)
    await daemon.adoption.all()
    record = daemon.record()
    assert record is not None
    assert [(a.ifname, a.network, a.owner) for a in record.attachments] == [
        ("eth0", "pods", Owner.CLUSTER),
        ("net1", "default/blue", Owner.NETWORKS),
        (IFACE, "blue", Owner.DELEGATE),
    ]
    assert all(a.ifindex > 1 and a.kind == "veth" and a.mac for a in record.attachments)
    # Asked for again, it is the same attachment, and a hot-unplug works.
    assert (await daemon.delegate("ADD", sandbox_netns, IFACE, bridge_config(daemon.folder)))[0] == 200
    assert await daemon.delegate("DEL", sandbox_netns, IFACE, {}) == (200, None)
    assert len(leases(daemon.folder)) == 1
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert leases(daemon.folder) == []
    assert leases(daemon.folder, "pods") == []
    assert not (daemon.config.cni_dir / SANDBOX).exists()
    assert list((daemon.config.cni_dir / "results").iterdir()) == []


async def test_del_of_a_sandbox_that_was_not_taken_over_reads_multus_cnis_files(
    daemon: Daemon, sandbox_netns: Path
) -> None:
    await made(daemon, sandbox_netns)
    # A torn file of delegates (it is written without fsync) costs nothing: libcni's cache tells the same.
    (daemon.config.cni_dir / SANDBOX).write_bytes(b'[{"Conf":{"cniVer')
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert leases(daemon.folder) == []
    assert leases(daemon.folder, "pods") == []
    assert list((daemon.config.cni_dir / "results").iterdir()) == []


async def test_a_wired_link_of_multus_cni_is_found_and_guarded(daemon: Daemon, sandbox_netns: Path) -> None:
    await made(daemon, sandbox_netns)
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
    # The in-pod bridge is the guest's and goes with the namespace; links and leases of the networks are gone.
    assert {link["ifname"] for link in links} == {"lo", f"k6t-{HASH}"}
    assert leases(daemon.folder) == []


async def test_a_sandbox_that_went_before_the_switch_is_undone_at_start(
    daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    await made(daemon, sandbox_netns)
    namespaces.remove(sandbox_netns)
    await daemon.adoption.all()
    assert await daemon.sweep.once() == 1
    assert leases(daemon.folder) == []
    assert leases(daemon.folder, "pods") == []
    assert not (daemon.config.cni_dir / SANDBOX).exists()
