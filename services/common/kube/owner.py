"""Whether a role may drive the NICs of VMs: KubeVirt's own objects say who does, and its pods whether that is true.

Two must never drive one NIC. Told to drive them, a role that finds KubeVirt's controllers at work at its start does not
start; one that finds them later stops acting until they are gone. What counts as at work is decided in
:mod:`services.common.domain.kubevirt`.
"""

import asyncio
from collections.abc import Callable

from schemas.kube import PODS, Pod
from services.common.domain.kubevirt import COMPONENT_LABEL, CONTROLLER, HANDLER, OwnerSetting, acting_owner, rivals
from services.common.kube.client import Kube
from services.common.kube.installations import Installations
from services.common.kube.reflector import Reflector
from services.common.logs import Log
from services.common.settings import SettingsError

CONDITION = "sole-owner"
"""The condition of ``/readyz``: met unless KubeVirt is at work where hotnic is told to be."""


class Owner:
    """Who drives the NICs of this cluster's VMs, or of one node's.

    :param node: a node role's own, whose virt-handler matters; ``None`` for a role of the whole cluster.
    :param changed: called when anything has changed. :param tell: told whether :data:`CONDITION` is met, and why not.
    :ivar installations: KubeVirt's own objects.
    """

    def __init__(
        self,
        kube: Kube,
        log: Log,
        setting: OwnerSetting,
        *,
        node: str | None = None,
        changed: Callable[[], None] = lambda: None,
        tell: Callable[[str, bool, str], None] = lambda _name, _ok, _why: None,
    ) -> None:
        self._setting = setting
        self._changed = changed
        self._tell = tell
        self._told = False
        self.installations = Installations(kube, log, self._look)
        wanted: list[tuple[str, str | None]] = [(f"{COMPONENT_LABEL} in ({CONTROLLER},{HANDLER})", None)]
        if node is not None:
            # Not the virt-handlers of all nodes: every node's handler watches.
            wanted = [(f"{COMPONENT_LABEL}={CONTROLLER}", None)]
            wanted += [(f"{COMPONENT_LABEL}={HANDLER}", f"spec.nodeName={node}")]
        self._pods: list[Reflector[Pod]] = [
            Reflector(kube, PODS, labels=labels, fields=fields, on_change=lambda _key, _pod: self._look(), log=log)
            for labels, fields in (wanted if setting == "hotnic" else ())
        ]

    def acts(self) -> bool:
        """Whether hotnic drives the NICs now."""
        return acting_owner(self._setting, self.installations.items()) == "hotnic" and not self._rivals()

    async def run(self) -> None:
        """Follow all that says so until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.installations.run())
            for pods in self._pods:
                group.create_task(pods.run())

    async def known(self) -> None:
        """Wait until it is known who does.

        :raises SettingsError: hotnic is told to, and KubeVirt is at work.
        """
        for known in (self.installations.known, *(pods.synced for pods in self._pods)):
            await known.wait()
        if why := self._why():
            raise SettingsError("HOTNIC_VM_OWNER", f"is hotnic, but {why}")

    def _rivals(self) -> list[str]:
        return rivals((pod for pods in self._pods for pod in pods.items()), self.installations.items())

    def _look(self) -> None:
        why = self._why()
        if bool(why) is not self._told:
            self._told = bool(why)
            self._tell(CONDITION, not why, why)
        self._changed()

    def _why(self) -> str:
        found = self._rivals()
        if not found:
            return ""
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        return (
            f"KubeVirt is at work: pod {found[0]}{more} runs, and two must never drive one NIC. "
            "Stop KubeVirt's controllers, or set it to kubevirt"
        )
