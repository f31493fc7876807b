"""The upstream article with its own manifests: a VM with a second NIC from its start, which is unplugged at the end."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.guest.console import AddressEvent
from lab.supervisor.bootstrap import EXAMPLES
from schemas.kubernetes.operations import pod_nic_key, read_operation, read_pod_nic
from services.common.domain.status_interfaces import DOMAIN, MULTUS_STATUS, find_entry, parse_tokens
from tests.support.lab.running import Lab, wait_until

MANIFESTS = EXAMPLES / "article"
NAMESPACE, VM, NIC = "article", "centos-stream9-1", "eth1"


def applied(lab: Lab, file: str, *flags: str) -> dict[str, Any]:
    """Apply one of the manifests and return it."""
    lab.kubectl("apply", "-f", str(MANIFESTS / file), *flags)
    document: dict[str, Any] = yaml.safe_load(Path(MANIFESTS / file).read_text())
    return document


@pytest.fixture
def running(lab: Lab) -> Iterator[None]:
    """Follow the article up to the running VM, in a namespace of its own: the lab already has a VM of this name."""
    for namespace in ("kubevirt", NAMESPACE):
        lab.kubectl("create", "namespace", namespace)
    applied(lab, "kubevirt.yaml")
    applied(lab, "net1.yaml")
    applied(lab, "vm.yaml", "-n", NAMESPACE)
    lab.kubectl("patch", "vm", VM, "-n", NAMESPACE, "--type=merge", "-p", '{"spec":{"running":true}}')
    yield
    lab.kubectl("delete", "vm", VM, "-n", NAMESPACE, "--timeout=60s")
    lab.kubectl("delete", "net-attach-def", "net1")
    lab.kubectl("delete", "kubevirt", "kubevirt", "-n", "kubevirt")
    for namespace in ("kubevirt", NAMESPACE):
        lab.kubectl("delete", "namespace", namespace, "--timeout=60s")


async def test_vm_of_the_article_has_its_second_nic_from_the_start(lab: Lab, running: None) -> None:
    await asyncio.to_thread(lab.wait_ready, VM, NAMESPACE)

    def entry() -> dict[str, Any]:
        return find_entry(lab.vmi(VM, NAMESPACE).status.interfaces, NIC) or {}

    await asyncio.to_thread(wait_until, lambda: {DOMAIN, MULTUS_STATUS} <= parse_tokens(entry()))
    vmi = lab.vmi(VM, NAMESPACE)
    record = read_pod_nic(lab.pod(vmi).metadata.annotations, pod_nic_key(NIC))
    assert record is not None
    assert (record.ips, record.mtu) == (("10.16.0.125/16",), 1350)
    assert entry()["mac"] == record.mac
    async with lab.console(vmi) as console:
        link = await console.wait_for_link(record.mac, timeout=45)
        assert (link.name, link.mtu) == (NIC, 1350)
        # The guest reports the address that the network's IPAM assigned; it received it by DHCP.
        bound = await console.wait_for(lambda e: isinstance(e, AddressEvent) and e.name == NIC, timeout=45)
    assert isinstance(bound, AddressEvent)
    assert (bound.action, bound.address) == ("bound", "10.16.0.125/16")

    # The NIC was plugged as any other, in one trace: that of the operation that the controller recorded.
    operation = read_operation(vmi.metadata.annotations, NIC)
    assert operation is not None
    assert operation.traceparent is not None
    hops = {"send hotplug.requested", "netlink setup", "qmp device_add", "send hotplug.guest-attached"}
    lab.wait_for_spans(operation.traceparent.split("-")[1], hops)
    status = json.loads(lab.hotnic("status", VM, "-n", NAMESPACE, "-o", "json").stdout)
    assert [(nic_status["interface"], nic_status["stage"]) for nic_status in status["interfaces"]] == [
        (NIC, "guest-attached")
    ]

    done = await asyncio.to_thread(
        lab.hotnic, "removeinterface", VM, "-n", NAMESPACE, "--name", NIC, "--persist", "--wait"
    )
    assert done.returncode == 0, done.stderr
    assert entry() == {}
