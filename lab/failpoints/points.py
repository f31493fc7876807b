"""The failpoints of all roles: the span that stands for each of them, and the requests that pass it.

Next: :mod:`lab.failpoints.tracer`.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

import msgspec

FAILPOINTS_VARIABLE: Final = "HOTNIC_LAB_FAILPOINTS"
"""Environment variable with the directory of armed failpoints."""
PASSED: Final = "passed"
"""File in the directory that gets a line for each failpoint that is passed, if the file exists."""

Moment = Literal["before", "after"]
MOMENTS: Final[tuple[Moment, ...]] = ("before", "after")

PLUG, UNPLUG = "plug", "unplug"
PLUG_VM, UNPLUG_VM = "plug the VM", "unplug the VM"
"""The same requests made in the VM's template (``--persist``), which have other effects in api and controller."""
PLUG_EDIT, UNPLUG_EDIT = "plug by an edit", "unplug by an edit"
"""The same requests made by an edit of the VM's template, without an operation."""
REFUSED = "plug of an interface that the guest cannot have"
"""Made by an edit of the VMI. The controller removes the interface again."""
UNRECORDED = "plug of what another attached"
"""A plug whose attachment has no record of the pod interface, as another controller leaves it."""


class Failpoint(msgspec.Struct, frozen=True):
    """The span of one externally visible effect. Names are patterns of :mod:`fnmatch`.

    :ivar requests: the requests that pass the failpoint.
    :ivar span: name of the span.
    :ivar parent: name of the parent span in the same process; ``*``: any parent, or none.
    :ivar attributes: attributes that the span has at its start.
    """

    requests: tuple[str, ...]
    span: str
    parent: str = "*"
    attributes: dict[str, str] = {}

    def matches(self, span: str, parent: str, attributes: Mapping[str, Any]) -> bool:
        """Return whether a span is the one of this failpoint.

        :param parent: name of the parent span; empty for none.
        """
        return (
            fnmatchcase(span, self.span)
            and fnmatchcase(parent, self.parent)
            and all(attributes.get(key) == value for key, value in self.attributes.items())
        )


_PATCH_VM: Final = "kube patch virtualmachines"
_PATCH_VMI: Final = "kube patch virtualmachineinstances"
_PATCH_POD: Final = "kube patch pods"
_PATCH_POD_STATUS: Final = "kube patch pods/status"
_EVENT: Final = "kube create events"
_START: Final = "controller request *"
_RECORD: Final = "record write"
_CHANGE: Final = "hotnic.record.change"

FAILPOINTS: Final[dict[str, Failpoint]] = {
    "api.patch-vmi": Failpoint((PLUG, UNPLUG), _PATCH_VMI),
    "api.patch-vm": Failpoint((PLUG_VM, UNPLUG_VM), _PATCH_VM),
    "api.publish-requested": Failpoint((PLUG, UNPLUG), "send hotplug.requested"),
    "api.event": Failpoint((PLUG, UNPLUG), _EVENT),
    "controller.start-vm": Failpoint((PLUG_EDIT, UNPLUG_EDIT), _PATCH_VM, parent=_START),
    "controller.start-vmi": Failpoint((PLUG_VM, UNPLUG_VM, REFUSED), _PATCH_VMI, parent=_START),
    "controller.publish-requested": Failpoint((PLUG_VM, UNPLUG_VM), "send hotplug.requested"),
    "controller.patch-pod": Failpoint((PLUG, UNPLUG), _PATCH_POD),
    "controller.publish-pod-annotated": Failpoint((PLUG,), "send hotplug.pod-annotated"),
    "controller.patch-vmi": Failpoint((PLUG, UNPLUG, REFUSED), _PATCH_VMI),
    "controller.patch-vm": Failpoint((UNPLUG_VM,), _PATCH_VM),
    "controller.event": Failpoint((PLUG, REFUSED), _EVENT),
    "networks.delegate-add": Failpoint((PLUG,), "POST /delegate", parent="networks attach *"),
    "networks.delegate-del": Failpoint((UNPLUG,), "POST /delegate", parent="networks detach *"),
    "networks.patch-pod": Failpoint((PLUG, UNPLUG), _PATCH_POD_STATUS),
    "networks.publish-multus-attached": Failpoint((PLUG,), "send hotplug.multus-attached"),
    "networks.publish-multus-detached": Failpoint((UNPLUG,), "send hotplug.multus-detached"),
    "networks.event": Failpoint((PLUG, UNPLUG), _EVENT),
    "multus.record-adding": Failpoint((PLUG,), _RECORD, attributes={_CHANGE: "adding"}),
    "multus.plugins-add": Failpoint((PLUG,), "cni ADD *"),
    "multus.record-added": Failpoint((PLUG,), _RECORD, attributes={_CHANGE: "added"}),
    "multus.plugins-del": Failpoint((UNPLUG,), "cni DEL *"),
    "multus.record-removed": Failpoint((UNPLUG,), _RECORD, attributes={_CHANGE: "removed"}),
    "multus.record-on-disk": Failpoint((PLUG, UNPLUG), "record sync"),
    "handler.record": Failpoint((UNRECORDED,), _PATCH_POD_STATUS),
    "handler.set-up": Failpoint((PLUG,), "netlink setup *"),
    "handler.netdev-add": Failpoint((PLUG,), "qmp netdev_add"),
    "handler.device-add": Failpoint((PLUG,), "qmp device_add"),
    "handler.device-del": Failpoint((UNPLUG,), "qmp device_del"),
    "handler.netdev-del": Failpoint((UNPLUG,), "qmp netdev_del"),
    "handler.tear-down": Failpoint((UNPLUG,), "netlink teardown *"),
    "handler.patch-vmi": Failpoint((PLUG, UNPLUG, REFUSED), _PATCH_VMI),
    "handler.publish-guest-attached": Failpoint((PLUG,), "send hotplug.guest-attached"),
    "handler.publish-guest-detached": Failpoint((UNPLUG,), "send hotplug.guest-detached"),
    "handler.publish-failed": Failpoint((REFUSED,), "send hotplug.failed"),
    "handler.event": Failpoint((PLUG, UNPLUG, REFUSED), _EVENT),
}
"""Every failpoint by its name ``<role>.<effect>``. A span belongs to the first one of its role that matches."""


def find_failpoint(role: str, span: str, parent: str, attributes: Mapping[str, Any]) -> str | None:
    """Return the name of the failpoint that a span stands for; ``None`` for any other span.

    :param parent: name of the parent span in the same process; empty for none.
    """
    for name, failpoint in FAILPOINTS.items():
        if name.startswith(f"{role}.") and failpoint.matches(span, parent, attributes):
            return name
    return None
