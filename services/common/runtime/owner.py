"""Decision whether a role may hot-plug the interfaces of VMs, watched live.

Two controllers must never change one interface. KubeVirt's own objects name the owner; its pods show whether its
controllers run. A role that is set to own the interfaces does not start while KubeVirt's controllers run, and stops
changing anything if they appear later. :mod:`services.common.domain.kubevirt.owner` decides what counts as running.
"""

import asyncio
from collections.abc import Callable, Sequence

from schemas.kubernetes.objects import PODS, Pod
from services.common.domain.kubevirt.capabilities import Capabilities, read_capabilities
from services.common.domain.kubevirt.owner import (
    COMPONENT_LABEL,
    CONTROLLER,
    HANDLER,
    KUBEVIRT_NAMESPACES,
    OwnerSetting,
    acting_owner,
    find_kubevirt_controllers,
)
from services.common.kube.cache.reflector import Reflector
from services.common.kube.client import Kube
from services.common.kube.denials import Denials
from services.common.runtime.installations import Installations
from services.common.runtime.settings import SettingsError
from services.common.telemetry.logs import Log

CONDITION = "sole-owner"
"""The condition of ``/readyz``: met unless hotnic is set to be the owner and KubeVirt's controllers run."""


class VmOwner:
    """The owner of the interfaces of a cluster's VMs, or of one node's VMs.

    :param setting: ``HOTNIC_VM_OWNER``.
    :param node: node of a node role, which has to watch that node's virt-handler only; ``None`` for a role of the whole
        cluster.
    :param on_change: called after each change.
    :param on_condition: called with :data:`CONDITION`, whether it is met, and otherwise the reason.
    :param denials: told when the API server forbids to read KubeVirt's objects or pods.
    :param namespaces: where KubeVirt may be installed, ``HOTNIC_KUBEVIRT_NAMESPACES``.
    :ivar installations: the cluster's KubeVirt objects.
    """

    def __init__(
        self,
        kube: Kube,
        log: Log,
        setting: OwnerSetting,
        *,
        node: str | None = None,
        on_change: Callable[[], None] = lambda: None,
        on_condition: Callable[[str, bool, str], None] = lambda _name, _ok, _why: None,
        denials: Denials | None = None,
        namespaces: Sequence[str] = KUBEVIRT_NAMESPACES,
    ) -> None:
        self._setting = setting
        self._on_change = on_change
        self._on_condition = on_condition
        self._conflicting = False
        self._namespaces = namespaces
        self.installations = Installations(kube, log, self._update, denials, namespaces)
        selectors: list[tuple[str, str | None]] = [(f"{COMPONENT_LABEL} in ({CONTROLLER},{HANDLER})", None)]
        if node is not None:
            # Every node's handler has such a watch, so each follows the virt-handler of its own node only.
            selectors = [(f"{COMPONENT_LABEL}={CONTROLLER}", None)]
            selectors += [(f"{COMPONENT_LABEL}={HANDLER}", f"spec.nodeName={node}")]
        self._pods: list[Reflector[Pod]] = [
            Reflector(
                kube,
                PODS,
                labels=labels,
                fields=fields,
                on_change=lambda _key, _pod: self._update_pods(),
                log=log,
                denials=denials,
            )
            # ADR 23. With any other setting KubeVirt's objects alone decide, and its controllers may run.
            for labels, fields in (selectors if setting == "hotnic" else ())
        ]

    def is_hotnic(self) -> bool:
        """Return whether hotnic owns the interfaces now."""
        return acting_owner(self._setting, self.installations.items()) == "hotnic" and not self._running_controllers()

    def beside(self) -> Capabilities | None:
        """Return what KubeVirt can do while it owns the interfaces; ``None`` while it does not."""
        installations = self.installations.items()
        return read_capabilities(installations) if acting_owner(self._setting, installations) == "kubevirt" else None

    async def run(self) -> None:
        """Watch KubeVirt's objects and pods until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.installations.run())
            for pods in self._pods:
                group.create_task(pods.run())

    async def wait_synced(self) -> None:
        """Wait until the owner is known.

        :raises SettingsError: hotnic is set to be the owner, and KubeVirt's controllers run; or KubeVirt is set to be
            it, and there is no KubeVirt.
        """
        for synced in (self.installations.synced, *(pods.synced for pods in self._pods)):
            await synced.wait()
        if conflict := self._conflict():
            raise SettingsError("HOTNIC_VM_OWNER", f"is hotnic, but {conflict}")
        if self._setting == "kubevirt" and not self.installations.items():
            raise SettingsError(
                "HOTNIC_VM_OWNER",
                "is kubevirt, but the cluster has no KubeVirt object that virt-operator has seen in "
                f"{' or '.join(self._namespaces)}, so nobody would hot-plug interfaces; install KubeVirt first, name "
                "its namespace in HOTNIC_KUBEVIRT_NAMESPACES, or set HOTNIC_VM_OWNER=hotnic",
            )

    def _running_controllers(self) -> list[str]:
        return find_kubevirt_controllers(
            (pod for pods in self._pods for pod in pods.items()), self.installations.items()
        )

    def _update(self) -> None:
        self._check_conflict()
        self._on_change()

    def _update_pods(self) -> None:
        # Any pod may have the label, and a change queues all VMs.
        if self._check_conflict():
            self._on_change()

    def _check_conflict(self) -> bool:
        """Report whether KubeVirt's controllers run, if that has changed; return whether it has."""
        conflict = self._conflict()
        if bool(conflict) is self._conflicting:
            return False
        self._conflicting = bool(conflict)
        self._on_condition(CONDITION, not conflict, conflict)
        return True

    def _conflict(self) -> str:
        found = self._running_controllers()
        if not found:
            return ""
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        return (
            f"KubeVirt's controllers run (pod {found[0]}{more}), and two controllers must not hot-plug one interface; "
            "stop KubeVirt's controllers or set HOTNIC_VM_OWNER=kubevirt"
        )
