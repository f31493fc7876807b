"""The teardown in a real network namespace: what the CNI plugin created is restored, and its DEL finds it."""

import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import INVALID_SPAN

from schemas.kubernetes.operations import PodNic, RecordedRoute
from services.common.domain.nic import link_names
from services.common.netlink.netns import Netns
from services.common.netlink.pool import NetnsPool
from services.handler.pod_network.apply import apply_operations
from services.handler.pod_network.operations import AddRoute, NetlinkOperation, ObservedLinks
from services.handler.pod_network.setup import bridge_binding, pod_nic_link, setup_operations
from services.handler.pod_network.teardown import teardown_operations
from tests.support.node import netns as testbed
from tests.support.node.cni import bridge_config, leases, real_plugins
from tests.support.telemetry.spans import recording_telemetry

NAMES = link_names("pod7e0055a6880")
POD = "22222222-2222-4222-8222-222222222222"
MAC = "3e:89:92:5a:b5:a7"
ARP_IGNORE = "net/ipv4/conf/all/arp_ignore"
DUAL = ("10.0.0.2/24", "fd00::2/64")
ROUTES = (
    RecordedRoute("0.0.0.0/0", "10.0.0.1"),
    RecordedRoute("10.9.0.0/16"),
    RecordedRoute("10.8.0.0/16", "10.9.0.1", 50),
)
RECORD = PodNic(pod_uid=POD, sandbox_id="s", interface=NAMES.pod_interface, mac=MAC, mtu=1400, ips=DUAL, routes=ROUTES)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Path]:
    with testbed.namespace(tmp_path, "node") as path:
        yield path


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Path]:
    with testbed.namespace(tmp_path, "pod") as path:
        yield path


@pytest.fixture
async def netns(pod: Path) -> AsyncIterator[Netns]:
    pool = NetnsPool()
    yield await pool.open(str(pod))
    pool.close()


async def observe(netns: Netns) -> ObservedLinks:
    return ObservedLinks(
        tuple(await netns.links()),
        tuple(await netns.addresses()),
        tuple(await netns.routes()),
        {ARP_IGNORE: await netns.sysctl(ARP_IGNORE)},
    )


async def set_up(netns: Netns, record: PodNic) -> None:
    observed = await observe(netns)
    link = pod_nic_link(observed, NAMES)
    assert link is not None
    operations = setup_operations(observed, bridge_binding(record, NAMES, link, position=1, owner=0))
    await apply_operations(netns, operations, INVALID_SPAN)


async def tear_down(netns: Netns, record: PodNic) -> list[NetlinkOperation]:
    operations = teardown_operations(await observe(netns), NAMES, record)
    await apply_operations(netns, operations, INVALID_SPAN, restoring=True)
    return operations


def attach(pod: Path, node: Path) -> None:
    """Create a pod interface with everything that a plugin can configure."""
    testbed.veth(pod, NAMES.pod_interface, node, "veth0")
    testbed.ip(pod, "link", "set", NAMES.pod_interface, "mtu", "1400", "address", MAC, "up")
    for ip in DUAL:
        testbed.ip(pod, "address", "add", ip, "dev", NAMES.pod_interface, "nodad")
    testbed.ip(pod, "route", "add", "default", "via", "10.0.0.1")
    testbed.ip(pod, "route", "add", "10.9.0.0/16", "dev", NAMES.pod_interface)
    testbed.ip(pod, "route", "add", "10.8.0.0/16", "via", "10.9.0.1", "metric", "50")


async def test_mac_mtu_addresses_and_routes_are_restored(pod: Path, node: Path, netns: Netns) -> None:
    attach(pod, node)
    before = testbed.configured(pod)
    await set_up(netns, RECORD)
    assert await netns.sysctl(ARP_IGNORE) == "1"
    assert testbed.configured(pod) != before
    await tear_down(netns, RECORD)
    assert testbed.configured(pod) == before
    assert await netns.sysctl(ARP_IGNORE) == "0"
    assert await tear_down(netns, RECORD) == []


async def test_an_address_with_a_label_of_the_link_name_is_moved_and_restored(
    pod: Path, node: Path, netns: Netns
) -> None:
    """kubevirt#15942: ``label must begin with interface name``, because the link is renamed meanwhile."""
    names = link_names("net1")
    testbed.veth(pod, names.pod_interface, node, "veth0")
    testbed.ip(pod, "link", "set", names.pod_interface, "address", MAC, "up")
    testbed.ip(pod, "address", "add", "10.0.0.2/24", "dev", names.pod_interface, "label", "net1:x")
    record = PodNic(pod_uid=POD, sandbox_id="s", interface=names.pod_interface, mac=MAC, mtu=1500, ips=("10.0.0.2/24",))
    link = pod_nic_link(await observe(netns), names)
    assert link is not None
    await apply_operations(
        netns,
        setup_operations(await observe(netns), bridge_binding(record, names, link, position=1, owner=0)),
        INVALID_SPAN,
    )
    (dummy,) = json.loads(testbed.ip(pod, "-json", "-4", "address", "show", names.pod_interface))
    assert [a["local"] for a in dummy["addr_info"]] == ["10.0.0.2"]
    assert json.loads(testbed.ip(pod, "-json", "-4", "address", "show", names.bridged)) == []
    await apply_operations(
        netns, teardown_operations(await observe(netns), names, record), INVALID_SPAN, restoring=True
    )
    (back,) = json.loads(testbed.ip(pod, "-json", "-4", "address", "show", names.pod_interface))
    assert [a["local"] for a in back["addr_info"]] == ["10.0.0.2"]


async def test_a_route_whose_next_hop_is_gone_is_skipped(pod: Path, node: Path, netns: Netns) -> None:
    testbed.veth(pod, NAMES.pod_interface, node, "veth0")
    testbed.ip(pod, "link", "set", NAMES.pod_interface, "up")
    record = PodNic(
        pod_uid=POD,
        sandbox_id="s",
        interface=NAMES.pod_interface,
        mac=MAC,
        mtu=1500,
        ips=("10.0.0.2/24",),
        routes=(RecordedRoute("10.8.0.0/16", "192.168.77.1"), RecordedRoute("0.0.0.0/0", "10.0.0.1")),
    )
    await set_up(netns, record)
    telemetry, spans = recording_telemetry()
    with telemetry.tracer.start_as_current_span("teardown") as span:
        await apply_operations(netns, teardown_operations(await observe(netns), NAMES, record), span, restoring=True)
    assert testbed.ip(pod, "route").startswith("default via 10.0.0.1")
    (finished,) = spans.get_finished_spans()
    refused = [event for event in finished.events if "error.message" in (event.attributes or {})]
    assert [event.name for event in refused] == [AddRoute.__name__]
    assert (refused[0].attributes or {})["gw"] == "192.168.77.1"


def cni(command: str, plugins: Path, pod: Path, node: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Run the real plugin as on the node; return its result."""
    done = subprocess.run(
        ["nsenter", f"--net={node}", str(plugins / "bridge")],
        input=json.dumps(config),
        env={
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": str(pod),
            "CNI_IFNAME": NAMES.pod_interface,
            "CNI_PATH": str(plugins),
            "PATH": os.environ["PATH"],
        },
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    return answer


async def test_del_of_the_bridge_plugin_leaves_nothing(tmp_path: Path, pod: Path, node: Path, netns: Netns) -> None:
    plugins = real_plugins(tmp_path / "bin", "bridge", "host-local")
    config = bridge_config(tmp_path, isGateway=True)
    result = cni("ADD", plugins, pod, node, config)
    inside = next(link for link in result["interfaces"] if link.get("sandbox"))
    (ip,) = result["ips"]
    record = PodNic(
        pod_uid=POD, sandbox_id="s", interface=NAMES.pod_interface, mac=inside["mac"], mtu=1500, ips=(ip["address"],)
    )
    await set_up(netns, record)
    await tear_down(netns, record)
    cni("DEL", plugins, pod, node, config)
    assert [link.name for link in await netns.links()] == ["lo"]
    assert leases(tmp_path) == []
    left = [link["ifname"] for link in json.loads(testbed.ip(node, "-json", "link"))]
    assert [name for name in left if name.startswith("veth")] == []
