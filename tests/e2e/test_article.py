"""The article of the mission, by its own manifests: a VM that has a second NIC from its start, and loses it at last."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.operations import operation_of, pod_nic_key, pod_nic_of
from services.common.domain.status_interfaces import DOMAIN, MULTUS_STATUS, entry_of, tokens
from services.lab.bootstrap import manifests
from services.lab.guest.console import AddressEvent
from tests.support.lab import Lab, until

MANIFESTS = manifests() / "examples" / "article"
NAMESPACE, VM, NIC = "article", "centos-stream9-1", "eth1"


def applied(lab: Lab, file: str, *flags: str) -> dict[str, Any]:
    """Apply one of the manifests as it stands."""
    lab.kubectl("apply", "-f", str(MANIFESTS / file), *flags)
    document: dict[str, Any] = yaml.safe_load(Path(MANIFESTS / file).read_text())
    return document


@pytest.fixture
def running(lab: Lab) -> Iterator[None]:
    """The article's steps, up to the VM that runs; in a namespace of its own, for the lab has a VM of this name."""
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


async def test_the_articles_vm_shows_its_second_nic_from_the_start(lab: Lab, running: None) -> None:
    await asyncio.to_thread(lab.kubectl, "wait", "vm", VM, "-n", NAMESPACE, "--for=condition=Ready", "--timeout=60s")

    def entry() -> dict[str, Any]:
        return entry_of(lab.vmi(VM, NAMESPACE).status.interfaces, NIC) or {}

    await asyncio.to_thread(until, lambda: {DOMAIN, MULTUS_STATUS} <= tokens(entry()))
    vmi = lab.vmi(VM, NAMESPACE)
    record = pod_nic_of(lab.pod(vmi).metadata.annotations, pod_nic_key(NIC))
    assert record is not None
    assert (record.ips, record.mtu) == (("10.16.0.125/16",), 1350)
    assert entry()["mac"] == record.mac
    async with lab.console(vmi) as console:
        link = await console.wait_for_link(record.mac, timeout=20)
        assert (link.name, link.mtu) == (NIC, 1350)
        # The guest itself shows the address that the network's IPAM chose; it got it by DHCP.
        told = await console.wait_for(lambda e: isinstance(e, AddressEvent) and e.name == NIC, timeout=20)
    assert isinstance(told, AddressEvent)
    assert (told.action, told.address) == ("bound", "10.16.0.125/16")

    # It was put in by the way that every NIC takes, in one trace: that of the operation that the controller wrote down.
    operation = operation_of(vmi.metadata.annotations, NIC)
    assert operation is not None
    assert operation.traceparent is not None
    hops = {"send hotplug.requested", "netlink wire", "qmp device_add", "send hotplug.guest-attached"}
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
