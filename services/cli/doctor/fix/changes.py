"""The changes that a finding can carry, as data: what is removed, from where, and what must still hold then.

Each change only removes. ``not_before`` is the time, in seconds since the epoch, before which the subject may belong to
an operation that has just begun. Not here: the decision whether a finding carries a change.
Pure. Next: :mod:`services.cli.doctor.fix.choose`.
"""

from typing import TypeAlias

import msgspec


class FixTarget(msgspec.Struct, frozen=True):
    """An object of the cluster.

    :ivar kind: ``Pod``, ``VirtualMachine`` or ``VirtualMachineInstance``.
    """

    kind: str
    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class _Removal(msgspec.Struct, frozen=True, tag_field="type"):
    pass


class AnnotationRemoval(_Removal, frozen=True, tag="annotation"):
    """Remove an annotation.

    :ivar expected: annotations that the decision is based on, with their values; ``None`` for an absent one. The
        annotation itself is one of them.
    """

    target: FixTarget
    key: str
    expected: tuple[tuple[str, str | None], ...]
    not_before: float = 0.0


class ElementRemoval(_Removal, frozen=True, tag="element"):
    """Remove an element of a pod's networks annotation.

    :ivar link: the interface name that the element requests.
    :ivar expected: as in :class:`AnnotationRemoval`.
    """

    target: FixTarget
    link: str
    expected: tuple[tuple[str, str | None], ...]
    not_before: float = 0.0


class LinkRemoval(_Removal, frozen=True, tag="link"):
    """Delete a link of a pod's network namespace that a guest's tap network consisted of.

    :ivar pod: ``namespace/name``.
    :ivar netns: path of the network namespace.
    :ivar tap: the tap of the same network; no process may hold it open.
    """

    pod: str
    netns: str
    index: int
    name: str
    kind: str
    tap: str


class RecordRemoval(_Removal, frozen=True, tag="record"):
    """Remove the files with the multus daemon's record of a sandbox.

    :ivar changed_at: when the files were last written, in seconds since the epoch.
    :ivar reserved: addresses that stay reserved, because only their IPAM plugin can release them.
    """

    sandbox: str
    pod: str
    files: tuple[str, ...]
    changed_at: float
    reserved: tuple[str, ...] = ()
    not_before: float = 0.0


class LeaseRemoval(_Removal, frozen=True, tag="lease"):
    """Remove a lease of ``host-local``.

    :ivar file: path on the node.
    :ivar container: sandbox id in the file.
    :ivar changed_at: when the file was last written, in seconds since the epoch.
    """

    network: str
    ip: str
    file: str
    container: str
    link: str
    changed_at: float
    not_before: float = 0.0


ObjectChange: TypeAlias = AnnotationRemoval | ElementRemoval
NodeChange: TypeAlias = LinkRemoval | RecordRemoval | LeaseRemoval
Fix: TypeAlias = AnnotationRemoval | ElementRemoval | LinkRemoval | RecordRemoval | LeaseRemoval


def describe_change(change: Fix) -> str:
    """Return what a change removes, and from where."""
    match change:
        case AnnotationRemoval():
            return f"annotation {change.key} of {change.target}"
        case ElementRemoval():
            return f"element {change.link} of the networks annotation of {change.target}"
        case LinkRemoval():
            return f"link {change.name} in Pod {change.pod}"
        case RecordRemoval():
            text = f"the multus daemon's record of sandbox {change.sandbox} (Pod {change.pod})"
            # Only the record names them, so this line is the last place that does.
            return f"{text}; its IPAM still reserves {', '.join(change.reserved)}" if change.reserved else text
        case LeaseRemoval():
            return f"host-local's lease of {change.ip} on network {change.network} ({change.file})"
