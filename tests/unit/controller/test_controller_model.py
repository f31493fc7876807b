"""A stateful model of VM, VMI, pod and guest: after random requests and edits it always reaches the desired state.

The plans of the api and the controller are the real ones; networks and handler are reduced to a few lines. Patches are
applied with their guards, as the API server does, and the order of all steps is random.
"""

import copy
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lab.apiserver.rest.patch import PatchFailed, apply_json_patch
from schemas.kubernetes.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkStatus,
    encode_network_status,
    parse_network_status,
    parse_networks,
)
from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import Operation, encode_annotation, is_operation_key, operation_key, read_operation
from schemas.kubernetes.options import AddInterfaceOptions, RemoveInterfaceOptions
from schemas.names import pod_interface
from schemas.stages import OperationKind
from services.api import plan as api
from services.common.domain.operations import ABSENT, operation_kind, resolve_operation
from services.common.domain.status_interfaces import DOMAIN, with_token, without_token
from services.controller.plan import PatchObject, StartOperations, WarnUser, plan
from tests.support.observed import objects
from tests.support.observed.observations import api_observed, controller_observed

NAMES = ("a", "b")
names = st.sampled_from(NAMES)


class Machine(RuleBasedStateMachine):
    """The state of one VM, and the steps that users and roles take."""

    @initialize(slots=st.integers(1, 2))
    def begin(self, slots: int) -> None:
        self.slots = slots
        self.count = 0
        self.vm: dict[str, Any] = msgspec.to_builtins(objects.vm(annotations={"some": "thing"}))
        self.vmi: dict[str, Any] | None = None
        self.pod: dict[str, Any] = {}
        self.guest: set[str] = set()
        self.vmi_only_unplugs: set[str] = set()
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
        self.vmi_only_unplugs = set()

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

    @rule(name=names, add=st.booleans(), vm=st.booleans(), settled=st.booleans())
    def request(self, name: str, add: bool, vm: bool, settled: bool) -> None:
        """Send a request to the api, possibly after all roles have finished."""
        if settled:
            self.settle()
        self.count += 1
        target = api.RequestTarget.VM if vm else api.RequestTarget.VMI
        answer = api.plan(
            api_observed(
                target,
                AddInterfaceOptions("net1", name) if add else RemoveInterfaceOptions(name),
                vm=self._vm() if vm else None,
                vmi=self._vmi(),
                pod=self._pod(),
                nad=objects.nad(),
                new_id=f"op-{self.count}",
                traceparent=None,
            )
        )
        if isinstance(answer, api.ChangeObject):
            self.vmi_only_unplugs.discard(name)
            if answer.target is api.RequestTarget.VMI and answer.operation.kind is OperationKind.UNPLUG:
                self.vmi_only_unplugs.add(name)
            self._patch("vm" if answer.target is api.RequestTarget.VM else "vmi", answer.ops)

    @rule(name=names, vm=st.booleans(), state=st.sampled_from(["", ABSENT, "gone"]))
    def edit(self, name: str, vm: bool, state: str) -> None:
        """Edit an object with kubectl; KubeVirt's webhook refuses to remove interfaces from a VMI."""
        self.vmi_only_unplugs.discard(name)
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
        """Stop the VM if it runs, otherwise start it."""
        if self.vmi is None:
            self._start()
        else:
            self.vmi, self.guest = None, set()

    # -- roles ---------------------------------------------------------------------------------------------------

    @rule(until=st.integers(0, 3))
    def run_controller(self, until: int) -> None:
        """Run the controller, which may crash after any write; it never reverts an absent interface."""
        before = self._states()
        self._run_controller(until)
        after = self._states()
        assert all(after[name] == ABSENT for name, state in before.items() if state == ABSENT and name in after)

    def _states(self) -> dict[str, str]:
        items = self.vmi["spec"]["domain"]["devices"]["interfaces"] if self.vmi is not None else []
        return {item["name"]: item.get("state", "") for item in items}

    def _run_controller(self, until: int = 99) -> bool:
        observed = controller_observed(self._vm(), self._vmi(), self._pod())
        done = 0
        for action in plan(observed):
            writes: list[tuple[str, list[Any]]] = []
            if isinstance(action, PatchObject):
                writes.append((str(action.target), action.ops))
            elif isinstance(action, StartOperations):
                operations = [started.operation for started in action.started]
                if observed.vm is not None:
                    writes.append(("vm", action.vm_ops(observed.vm, operations)))
                assert observed.vmi is not None
                writes.append(("vmi", action.vmi_ops(observed.vmi, operations)))
            else:
                assert isinstance(action, WarnUser)
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
    def run_networks(self) -> None:
        """Run the networks role."""
        self._run_networks()

    def _run_networks(self) -> bool:
        if self.vmi is None:
            return False
        annotations = self.pod["metadata"]["annotations"]
        annotated_links = {str(e.requested_interface) for e in parse_networks(annotations.get(NETWORKS))}
        present = {str(s.interface) for s in parse_network_status(annotations.get(NETWORK_STATUS))}
        if annotated_links == present:
            return False
        for name in NAMES:
            assert name not in self.guest or pod_interface(name) in annotated_links, (
                "detached while the NIC is in the guest"
            )
        statuses = [NetworkStatus("default/net1", link) for link in sorted(annotated_links)]
        annotations[NETWORK_STATUS] = encode_network_status(statuses)
        return True

    @rule()
    def run_handler(self) -> None:
        """Run the handler."""
        self._run_handler()

    def _run_handler(self) -> bool:
        vmi, pod = self._vmi(), self._pod()
        if vmi is None or pod is None or self.vmi is None:
            return False
        present = {s.interface for s in parse_network_status(pod.metadata.annotations.get(NETWORK_STATUS))}
        before = (copy.deepcopy(self.vmi), set(self.guest))
        entries = vmi.status.interfaces
        for interface in vmi.spec.interface_items():
            name = interface.name
            operation = resolve_operation(vmi, interface, read_operation(vmi.metadata.annotations, name))
            if name not in NAMES:
                continue
            if operation_kind(interface) is OperationKind.UNPLUG:
                self.guest.discard(name)
                entries = without_token(entries, name, DOMAIN)
                self._write_operation(msgspec.structs.replace(operation, released=pod.metadata.uid))
            elif name in self.guest:
                entries = with_token(entries, name, DOMAIN)
            elif pod_interface(name) in present and operation.kind is OperationKind.PLUG and operation.failed is None:
                if len(self.guest) < self.slots:
                    self.guest.add(name)
                    entries = with_token(entries, name, DOMAIN)
                else:
                    self._write_operation(msgspec.structs.replace(operation, failed="NoFreeSlot"))
        if entries is not None:
            self._patch("vmi", [{"op": "add", "path": "/status/interfaces", "value": entries}])
        return (self.vmi, self.guest) != before

    def _write_operation(self, operation: Operation) -> None:
        assert self.vmi is not None
        self.vmi["metadata"]["annotations"][operation_key(operation.interface)] = encode_annotation(operation)

    # -- invariants ----------------------------------------------------------------------------------------------

    @invariant()
    def every_guest_nic_has_its_attachment(self) -> None:
        if self.vmi is None:
            return
        annotated_links = {
            e.requested_interface for e in parse_networks(self.pod["metadata"]["annotations"].get(NETWORKS))
        }
        assert {pod_interface(name) for name in self.guest} <= annotated_links

    @rule()
    def settle(self) -> None:
        """Run the roles until nothing changes; then specs, pod and guest agree."""
        for _ in range(60):
            if not any([self._run_controller(), self._run_networks(), self._run_handler()]):
                break
        else:
            raise AssertionError("the roles do not stop changing objects")
        vmi, vm = self._vmi(), self._vm()
        if vmi is None:
            assert all(operation_kind(i) is OperationKind.PLUG for i in vm.spec.template.spec.interface_items())
            return
        desired = {i.name for i in vmi.spec.interface_items()} & set(NAMES)
        assert not self.vmi_only_unplugs & desired, "the template plugged an interface again"
        assert all(operation_kind(i) is OperationKind.PLUG for i in vmi.spec.interface_items()), (
            "an absent interface remains"
        )
        assert self.guest == desired
        annotations = self.pod["metadata"]["annotations"]
        links = {pod_interface(name) for name in desired}
        assert {e.requested_interface for e in parse_networks(annotations.get(NETWORKS))} == links
        assert {s.interface for s in parse_network_status(annotations.get(NETWORK_STATUS))} == links
        assert {e["name"] for e in vmi.status.interfaces or ()} == desired
        template = {i.name for i in vm.spec.template.spec.interface_items()}
        assert all(operation_kind(i) is OperationKind.PLUG for i in vm.spec.template.spec.interface_items())
        for name in NAMES:
            recorded = read_operation(vmi.metadata.annotations, name)
            vmi_only = recorded is not None and recorded.kind is OperationKind.UNPLUG
            # The VMI has every interface of the template, except one that a recorded unplug removed from the VMI only.
            assert name not in template or name in desired or vmi_only
            assert not (vmi_only and name in desired)
            assert recorded is None or name in desired or name in template
        for owner, existing in ((self.vm, template), (self.pod, desired)):
            remaining = {key for key in owner["metadata"]["annotations"] if is_operation_key(key)}
            assert remaining <= {operation_key(name) for name in existing}


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestPlugsAndUnplugs = Machine.TestCase
