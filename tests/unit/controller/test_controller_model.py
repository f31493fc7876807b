"""A model of VM, VMI, pod and guest through random requests and edits: it always ends where the specs say.

The api's and the controller's own plans decide; networks and handler are played by the few lines that matter here.
Patches are applied as the API server does it, guards included, and whatever happens in between is random.
"""

import copy
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from schemas.kube import Pod, VirtualMachine, VirtualMachineInstance
from schemas.names import pod_interface
from schemas.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkStatus,
    encode_network_status,
    parse_network_status,
    parse_networks,
)
from schemas.operations import Operation, encode, is_operation_key, operation_key, operation_of
from schemas.options import AddInterfaceOptions, RemoveInterfaceOptions
from schemas.stages import OperationKind
from services.api import plan as api
from services.common.domain.operations import ABSENT, kind_of, operation_for
from services.common.domain.status_interfaces import DOMAIN, with_token, without_token
from services.controller.plan import Complain, Observed, Patch, Start, plan
from services.lab.apiserver.patch import PatchFailed, apply_json_patch
from tests.support import objects

NAMES = ("a", "b")
names = st.sampled_from(NAMES)


class Machine(RuleBasedStateMachine):
    """One VM."""

    @initialize(slots=st.integers(1, 2))
    def begin(self, slots: int) -> None:
        self.slots = slots
        self.count = 0
        self.vm: dict[str, Any] = msgspec.to_builtins(objects.vm(annotations={"some": "thing"}))
        self.vmi: dict[str, Any] | None = None
        self.pod: dict[str, Any] = {}
        self.guest: set[str] = set()
        self.alone: set[str] = set()
        self._start()

    # -- objects -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.count += 1
        uid = f"pod-{self.count}"
        vmi = msgspec.to_builtins(objects.vmi(owned=True, annotations={"some": "thing"}))
        vmi["metadata"]["uid"] = f"vmi-{self.count}"
        vmi["spec"] = copy.deepcopy(self.vm["spec"]["template"]["spec"])
        vmi["status"]["activePods"] = {uid: objects.NODE}
        self.vmi = vmi
        self.pod = msgspec.to_builtins(objects.pod({"some": "thing"}))
        self.pod["metadata"]["uid"] = uid
        self.guest = set()
        self.alone = set()

    def _vm(self) -> VirtualMachine:
        return msgspec.convert(copy.deepcopy(self.vm), VirtualMachine)

    def _vmi(self) -> VirtualMachineInstance | None:
        return msgspec.convert(copy.deepcopy(self.vmi), VirtualMachineInstance) if self.vmi is not None else None

    def _pod(self) -> Pod | None:
        return msgspec.convert(copy.deepcopy(self.pod), Pod) if self.vmi is not None else None

    def _patch(self, target: str, ops: list[Any]) -> None:
        before = getattr(self, target)
        after = apply_json_patch(copy.deepcopy(before), ops)
        if after != before:
            meta = after["metadata"]
            meta["resourceVersion"] = str(int(meta["resourceVersion"]) + 1)
            moved = "spec" if target == "vm" else "status"
            if after["spec"] != before["spec"] or after.get(moved) != before.get(moved):
                meta["generation"] = meta.get("generation", 0) + 1
            setattr(self, target, after)

    # -- users ---------------------------------------------------------------------------------------------------

    @rule(name=names, add=st.booleans(), vm=st.booleans(), calm=st.booleans())
    def request(self, name: str, add: bool, vm: bool, calm: bool) -> None:
        """A request to the api, perhaps once everything has come to rest."""
        if calm:
            self.settle()
        self.count += 1
        target = api.Target.VM if vm else api.Target.VMI
        answer = api.plan(
            api.Observed(
                target=target,
                namespace=objects.NAMESPACE,
                name="vm1",
                options=AddInterfaceOptions("net1", name) if add else RemoveInterfaceOptions(name),
                vm=self._vm() if vm else None,
                vmi=self._vmi(),
                pod=self._pod(),
                nad=objects.nad(),
                fresh_id=f"op-{self.count}",
                now="2026-01-01T00:00:00Z",
            )
        )
        if isinstance(answer, api.Change):
            self.alone.discard(name)
            if answer.target is api.Target.VMI and answer.operation.kind is OperationKind.UNPLUG:
                self.alone.add(name)
            self._patch("vm" if answer.target is api.Target.VM else "vmi", answer.ops)

    @rule(name=names, vm=st.booleans(), state=st.sampled_from(["", ABSENT, "gone"]))
    def edit(self, name: str, vm: bool, state: str) -> None:
        """An edit with kubectl; on the VMI nothing is taken away, as its webhook has it."""
        self.alone.discard(name)
        if vm:
            spec = self.vm["spec"]["template"]["spec"]
        elif self.vmi is not None and state != "gone":
            spec = self.vmi["spec"]
        else:
            return
        edited = copy.deepcopy(spec)
        interfaces, networks = edited["domain"]["devices"]["interfaces"], edited["networks"]
        if state == "gone":
            interfaces[:] = [item for item in interfaces if item["name"] != name]
            networks[:] = [item for item in networks if item["name"] != name]
        elif any(item["name"] == name for item in interfaces):
            for item in interfaces:
                if item["name"] == name:
                    item.update({"state": state})
        elif state == "":
            interface, network = objects.nic(name)
            interfaces.append(interface)
            networks.append(network)
        path = "/spec/template/spec" if vm else "/spec"
        self._patch("vm" if vm else "vmi", [{"op": "replace", "path": path, "value": edited}])

    @rule()
    def restart(self) -> None:
        """Stop the VM, or start it."""
        if self.vmi is None:
            self._start()
        else:
            self.vmi, self.guest = None, set()

    # -- roles ---------------------------------------------------------------------------------------------------

    @rule(until=st.integers(0, 3))
    def control(self, until: int) -> None:
        """The controller looks, and may die after any of its writes. It turns no absent interface back."""
        before = self._states()
        self._control(until)
        after = self._states()
        assert all(after[name] == ABSENT for name, state in before.items() if state == ABSENT and name in after)

    def _states(self) -> dict[str, str]:
        items = self.vmi["spec"]["domain"]["devices"]["interfaces"] if self.vmi is not None else []
        return {item["name"]: item.get("state", "") for item in items}

    def _control(self, until: int = 99) -> bool:
        seen = Observed(vmi=self._vmi(), pod=self._pod(), vm=self._vm(), now="2026-01-01T00:00:00Z")
        done = 0
        for action in plan(seen):
            writes: list[tuple[str, list[Any]]] = []
            if isinstance(action, Patch):
                writes.append((str(action.target), action.ops))
            elif isinstance(action, Start):
                operations = [wish.operation for wish in action.wishes]
                if seen.vm is not None:
                    writes.append(("vm", action.vm_ops(seen.vm, operations)))
                assert seen.vmi is not None
                writes.append(("vmi", action.vmi_ops(seen.vmi, operations)))
            else:
                assert isinstance(action, Complain)
            for target, ops in writes:
                if done >= until:
                    return True
                if ops:
                    try:
                        self._patch(target, ops)
                    except PatchFailed:
                        return True
                    done += 1
        return done > 0

    @rule()
    def attach_or_detach(self) -> None:
        """The networks role."""
        self._networks()

    def _networks(self) -> bool:
        if self.vmi is None:
            return False
        annotations = self.pod["metadata"]["annotations"]
        wanted = {str(e.requested_interface) for e in parse_networks(annotations.get(NETWORKS))}
        present = {str(s.interface) for s in parse_network_status(annotations.get(NETWORK_STATUS))}
        if wanted == present:
            return False
        for name in NAMES:
            assert name not in self.guest or pod_interface(name) in wanted, "detached under a card in the guest"
        statuses = [NetworkStatus("default/net1", link) for link in sorted(wanted)]
        annotations[NETWORK_STATUS] = encode_network_status(statuses)
        return True

    @rule()
    def serve_guest(self) -> None:
        """The handler."""
        self._handler()

    def _handler(self) -> bool:
        vmi, pod = self._vmi(), self._pod()
        if vmi is None or pod is None or self.vmi is None:
            return False
        present = {s.interface for s in parse_network_status(pod.metadata.annotations.get(NETWORK_STATUS))}
        before = (copy.deepcopy(self.vmi), set(self.guest))
        entries = vmi.status.interfaces
        for interface in vmi.spec.interface_items():
            name, operation = interface.name, operation_for(vmi, interface)
            if name not in NAMES:
                continue
            if kind_of(interface) is OperationKind.UNPLUG:
                self.guest.discard(name)
                entries = without_token(entries, name, DOMAIN)
                self._note(msgspec.structs.replace(operation, released=pod.metadata.uid))
            elif name in self.guest:
                entries = with_token(entries, name, DOMAIN)
            elif pod_interface(name) in present and operation.kind is OperationKind.PLUG and operation.failed is None:
                if len(self.guest) < self.slots:
                    self.guest.add(name)
                    entries = with_token(entries, name, DOMAIN)
                else:
                    self._note(msgspec.structs.replace(operation, failed="NoFreeSlot"))
        if entries is not None:
            self._patch("vmi", [{"op": "add", "path": "/status/interfaces", "value": entries}])
        return (self.vmi, self.guest) != before

    def _note(self, operation: Operation) -> None:
        assert self.vmi is not None
        self.vmi["metadata"]["annotations"][operation_key(operation.interface)] = encode(operation)

    # -- what must hold ------------------------------------------------------------------------------------------

    @invariant()
    def nothing_hangs_in_the_guest_without_its_attachment(self) -> None:
        if self.vmi is None:
            return
        wanted = {e.requested_interface for e in parse_networks(self.pod["metadata"]["annotations"].get(NETWORKS))}
        assert {pod_interface(name) for name in self.guest} <= wanted

    @rule()
    def settle(self) -> None:
        """Left alone, everything comes to rest, and specs, pod and guest agree."""
        for _ in range(60):
            if not any([self._control(), self._networks(), self._handler()]):
                break
        else:
            raise AssertionError("no rest")
        vmi, vm = self._vmi(), self._vm()
        if vmi is None:
            assert all(kind_of(i) is OperationKind.PLUG for i in vm.spec.template.spec.interface_items())
            return
        wished = {i.name for i in vmi.spec.interface_items()} & set(NAMES)
        assert not self.alone & wished, "unplugged from the running VM alone, and not brought back by the template"
        assert all(kind_of(i) is OperationKind.PLUG for i in vmi.spec.interface_items()), "absent is gone in the end"
        assert self.guest == wished
        annotations = self.pod["metadata"]["annotations"]
        links = {pod_interface(name) for name in wished}
        assert {e.requested_interface for e in parse_networks(annotations.get(NETWORKS))} == links
        assert {s.interface for s in parse_network_status(annotations.get(NETWORK_STATUS))} == links
        assert {e["name"] for e in vmi.status.interfaces or ()} == wished
        template = {i.name for i in vm.spec.template.spec.interface_items()}
        assert all(kind_of(i) is OperationKind.PLUG for i in vm.spec.template.spec.interface_items())
        for name in NAMES:
            marked = operation_of(vmi.metadata.annotations, name)
            unplugged_alone = marked is not None and marked.kind is OperationKind.UNPLUG
            # Whatever the template lists runs, unless it was unplugged from the running VM alone, which is remembered.
            assert name not in template or name in wished or unplugged_alone
            assert not (unplugged_alone and name in wished)
            assert marked is None or name in wished or name in template
        for owner, left in ((self.vm, template), (self.pod, wished)):
            kept = {key for key in owner["metadata"]["annotations"] if is_operation_key(key)}
            assert kept <= {operation_key(name) for name in left}


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestPlugsAndUnplugs = Machine.TestCase
