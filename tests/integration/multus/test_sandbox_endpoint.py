"""``GET /sandboxes/<id>``: the record that the networks role compares with a pod's annotations."""

from pathlib import Path

import msgspec

from schemas.kubernetes.networks import NETWORKS
from schemas.multus import InterfaceAttributes, SandboxRecord
from tests.support.node.cni import RecordingPlugin
from tests.support.node.multus_daemon import POD_UID, SANDBOX, Daemon


async def test_the_endpoint_lists_attachments_and_requested_attributes(
    daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    daemon.pod({NETWORKS: "red@net7"})
    daemon.nad("red", {"cniVersion": "1.0.0", "type": recording.type})
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    config = {"cniVersion": "1.0.0", "name": "blue", "type": recording.type}
    attributes = InterfaceAttributes(cni_args={"a": 1}, ips=["10.9.0.4/24"], mac="02:00:00:00:00:07")
    assert (await daemon.delegate("ADD", sandbox_netns, "pod7e0055a6880", config, attributes))[0] == 200

    status, body = await daemon.http.request("GET", f"/sandboxes/{SANDBOX}")
    assert status == 200
    record = msgspec.json.decode(body, type=SandboxRecord)
    assert (record.sandbox_id, record.pod_uid) == (SANDBOX, POD_UID)
    assert [(a.interface, a.network, a.owner, a.hot_plugged) for a in record.attachments] == [
        ("eth0", "pods", "cluster", False),
        ("net7", "default/red", "networks", False),
        ("pod7e0055a6880", "blue", "delegate", True),
    ]
    primary, _, plugged = record.attachments
    assert (primary.kind, primary.added) == ("veth", True)
    assert primary.ifindex > 1
    assert primary.mac is not None
    assert plugged.requested == attributes
    keys = set(msgspec.json.decode(body)["attachments"][0])
    assert keys >= {"interface", "network", "owner", "hotPlugged", "configDigest", "mac", "ifindex", "kind"}
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)


async def test_an_unknown_sandbox_is_404(daemon: Daemon) -> None:
    for sandbox_id in (SANDBOX, "..%2Fsandboxes", "%00"):
        assert (await daemon.http.request("GET", f"/sandboxes/{sandbox_id}"))[0] == 404
    assert (await daemon.http.request("DELETE", f"/sandboxes/{SANDBOX}"))[0] == 405
