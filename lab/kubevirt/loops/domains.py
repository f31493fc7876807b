"""virt-handler's loop: boot the guest, attach and detach its NICs, report them in the VMI's status.

The guests are played: nothing runs, and a device is there as soon as its step was taken. Next: `migrations.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lab.kubevirt import conditions
from lab.kubevirt.annotations import acting_pod, read_network_status
from lab.kubevirt.interfaces import (
    DOMAIN,
    GUEST_AGENT,
    DomainDevice,
    desired_link_state,
    guest_mac,
    to_attach,
    to_detach,
    tokens_of,
    with_domain,
)
from lab.kubevirt.loops.play import Play, key_of, retrying
from lab.kubevirt.objects import in_phase
from lab.kubevirt.specs import ABSENT, is_secondary, lists_of
from lab.node.objects import now
from lab.node.resources import VMIS, Key, find
from schemas.names import pod_interface
from services.common.kube.patch import add, test
from services.common.reconcile import Attempt

Object = dict[str, Any]

PRIMARY_ADDRESS = "10.244.0.10"


class DomainLoop:
    """Reconciles VMIs with their domains.

    :ivar domains: the NICs of each domain by the VMI's UID and by interface.
    """

    def __init__(self, play: Play) -> None:
        self._play = play
        self.domains: dict[str, dict[str, DomainDevice]] = {}

    async def reconcile(self, key: Key, _attempt: Attempt) -> None:
        """Take the steps that are due for the domain of the VMI of `key`.

        :raises Retry: the VMI changed meanwhile.
        """
        async with retrying():
            vmi = await find(self._play.kube, VMIS, key)
            if vmi is None or vmi["metadata"].get("deletionTimestamp"):
                return
            phase = vmi.get("status", {}).get("phase")
            if phase == "Scheduled" and not self._play.pace.holds("boot", key[1]):
                await self._play.pace.before("boot")
                await self._boot(vmi)
            elif phase == "Running":
                await self._sync(vmi)

    async def _boot(self, vmi: Object) -> None:
        lists = lists_of(vmi["spec"])
        booted = [interface for interface in lists.interfaces if interface.get("state") != ABSENT]
        devices = {i["name"]: self._device(vmi, i, with_agent=True) for i in booted}
        self.domains[vmi["metadata"]["uid"]] = devices
        status, time = in_phase(vmi["status"], "Running"), now()
        migratable = conditions.condition("LiveMigratable", True, time)
        bridged = any("bridge" in i and not is_secondary(lists.network(i["name"])) for i in lists.interfaces)
        if bridged or key_of(vmi) in self._play.not_migratable:
            message = "cannot migrate VMI which does not use masquerade, bridge with annotation or a migratable plugin"
            migratable = conditions.condition(
                "LiveMigratable", False, time, reason="InterfaceNotLiveMigratable", message=message
            )
        ready = [conditions.condition(kind, True, time) for kind in ("Ready", "AgentConnected")]
        fields = {
            "conditions": [*ready, migratable],
            "interfaces": with_domain(vmi, devices, self._play.behaviour),
        }
        await self._play.set_status(VMIS, vmi, {**status, **fields})

    async def _sync(self, vmi: Object) -> None:
        pace, devices = self._play.pace, self._devices(vmi)
        if not conditions.is_migrating(vmi):
            for interface in await self._attachable(vmi, devices):
                if not pace.holds("attach", interface["name"]):
                    await pace.before("attach")
                    devices[interface["name"]] = self._device(vmi, interface, with_agent=False)
            for name in to_detach(vmi, devices):
                if not pace.holds("detach", name):
                    await pace.before("detach")
                    del devices[name]
            await self._set_links(vmi, devices)
        vmi = await self._report(vmi, devices)
        for name, device in devices.items():
            if not device.interface_name and not pace.holds("guest-agent", name):
                await pace.before("guest-agent")
                devices[name] = replace(device, interface_name=_guest_name(vmi, name))
        await self._report(vmi, devices)

    async def _attachable(self, vmi: Object, devices: dict[str, DomainDevice]) -> list[Object]:
        """Return the interfaces to attach whose link the acting pod has; after a migration the status may be older."""
        wanted = to_attach(vmi, devices)
        pod = acting_pod(vmi, await self._play.pods_of(vmi)) if wanted else None
        links = {item.get("interface") for item in read_network_status(pod)} if pod is not None else set()
        return [interface for interface in wanted if pod_interface(interface["name"]) in links]

    async def _set_links(self, vmi: Object, devices: dict[str, DomainDevice]) -> None:
        for interface in lists_of(vmi["spec"]).interfaces:
            name, wanted = interface["name"], desired_link_state(interface, self._play.behaviour)
            device = devices.get(name)
            if device is None or interface.get("state") == ABSENT or device.link_state == wanted:
                continue
            if not self._play.pace.holds("link-state", name):
                await self._play.pace.before("link-state")
                devices[name] = replace(device, link_state=wanted)

    async def _report(self, vmi: Object, devices: dict[str, DomainDevice]) -> Object:
        before, path = vmi["status"].get("interfaces"), "/status/interfaces"
        entries = with_domain(vmi, devices, self._play.behaviour)
        if entries == (before or []):
            return vmi
        return await self._play.patch(VMIS, vmi, [test(path, before), add(path, entries)])

    def _devices(self, vmi: Object) -> dict[str, DomainDevice]:
        """Return the NICs of a VMI's domain, after a restart of the player from the status that it wrote."""
        uid = vmi["metadata"]["uid"]
        if uid not in self.domains:
            self.domains[uid] = {
                str(entry["name"]): DomainDevice(
                    str(entry["name"]),
                    str(entry.get("mac", "")),
                    str(entry.get("linkState", "up")),
                    str(entry.get("interfaceName", "")) if GUEST_AGENT in tokens_of(entry) else "",
                    str(entry.get("ipAddress", "")),
                    int(entry.get("queueCount", 1)),
                )
                for entry in vmi["status"].get("interfaces") or []
                if DOMAIN in tokens_of(entry)
            }
        return self.domains[uid]

    def _device(self, vmi: Object, interface: Object, *, with_agent: bool) -> DomainDevice:
        name = interface["name"]
        return DomainDevice(
            name,
            guest_mac(interface),
            desired_link_state(interface, self._play.behaviour),
            _guest_name(vmi, name) if with_agent else "",
            "" if is_secondary(lists_of(vmi["spec"]).network(name)) else PRIMARY_ADDRESS,
            0 if "sriov" in interface else 1,
        )


def _guest_name(vmi: Object, name: str) -> str:
    names = [interface["name"] for interface in lists_of(vmi["spec"]).interfaces]
    return f"eth{names.index(name)}" if name in names else "eth9"
