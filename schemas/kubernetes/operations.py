"""hotnic's own annotations: the operation, the pod NIC record, the hot-plug mark and the number of free NIC slots.

Through them a role that learns of work by watch, not by bus, joins the same operation and trace.
Next: :mod:`schemas.kubernetes.networks`, the annotations of Multus.
"""

import re
import uuid
from collections.abc import Container, Mapping

import msgspec

from schemas.inputs import Edge, InputDecoder, RejectedInput, RejectReason, reject
from schemas.kubernetes.objects import ObjectMeta
from schemas.names import HASH_DIGITS, interface_hash
from schemas.stages import OperationKind

PREFIX = "hotnic.io/"
NIC_SLOTS = PREFIX + "nic-slots"
_OPERATION = PREFIX + "operation."
_UNPLUG = PREFIX + "unplug."
MAX_OPERATION_BYTES = 1024
"""Limit of an operation, and of a hot-plug mark; an operation with names of the greatest length has 700."""
MAX_POD_NIC_BYTES = 8 * 1024
"""Room for about 190 routes.

Kubernetes limits all annotations of a pod to 256 KiB together, and a guest has up to about 25 NICs.
"""

_ID = re.compile(r"[!-~]{1,64}")
"""It is sent in headers of HTTP and of messages."""
_REASON = re.compile(r"[A-Z][A-Za-z0-9]{0,63}")
"""The reason of a failure, which becomes the reason of a Kubernetes Event."""
_SECONDS = len("2026-11-23T10:00:00")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", re.ASCII)
"""A time of :attr:`Operation.requested_at`, in UTC. Up to the second, such times sort as text."""
_HASHED = re.compile(rf"pod[0-9a-f]{{{HASH_DIGITS}}}")
_NAMESPACE = uuid.UUID("6f1c8f0a-7d0e-5f33-9c55-0b7a2e3f9d11")
"""Namespace of derived ids (UUID version 5). It must not change: all roles have to derive the same ids."""


class AnnotationTooLarge(ValueError):
    """An annotation exceeds the limit of its readers and is not written."""


class _Annotation(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    pass


class Operation(_Annotation, frozen=True):
    """One plug or unplug of one interface of one VMI, or of one link of an ordinary pod.

    :ivar id: a UUID; :func:`derive_operation_id` derives it for a change without an annotation.
    :ivar interface: name of the interface in the VMI's spec; for an ordinary pod, name of the link.
    :ivar traceparent: W3C trace context of the request; ``None`` when the request was not traced.
    :ivar requested_at: RFC 3339, UTC.
    :ivar released: UID of the pod in which the handler has torn down the NIC's pod network (unplug only).
    :ivar failed: CamelCase; the final failure of a plug. The unplug that undoes the plug has the same value.
    :ivar vm: UID of the VM; only beside KubeVirt, where the operation is written before the VM's template is edited. An
        operation that names another VM is a copy (clone, restore, export) and is ignored.
    :ivar network: the NAD of a plug as ``namespace/name``; only beside KubeVirt, where a change of the NAD is a plug of
        its own. ``None`` of an unplug, and if unknown.
    :ivar holder: UID of the object that has the annotation. One that names another object is a copy (restore, clone,
        template metadata) and is ignored. ``None`` beside KubeVirt, of earlier versions (then the operation counts only
        if it was requested after the object was created), and everywhere but in an annotation: :func:`held_by` sets it,
        and the readers remove it.
    """

    id: str
    kind: OperationKind
    interface: str
    traceparent: str | None = None
    requested_at: str | None = None
    released: str | None = None
    failed: str | None = None
    vm: str | None = None
    network: str | None = None
    holder: str | None = None


class RecordedRoute(_Annotation, frozen=True):
    """A route of a pod NIC: destination in CIDR form, next hop (``None``: on link) and metric."""

    dst: str
    gw: str | None = None
    priority: int | None = None


class PodNic(_Annotation, frozen=True):
    """State of a pod interface before its pod network was set up.

    Setting a link down loses its routes, IPv6 addresses and MAC, so they are recorded first. The record is valid only
    for the pod and sandbox that it names.

    :ivar pod_uid: the pod.
    :ivar sandbox_id: the pod's sandbox; a new sandbox has new links.
    :ivar interface: name of the pod interface, not of the interface in the VMI's spec.
    :ivar mtu: bytes.
    :ivar ips: addresses with prefix length.
    :ivar nameservers: DNS servers of the CNI result, as ``search`` and ``domain``.
    :ivar settings_digest: digest of the settings in the network selection element with which the link was attached, to
        detect that they have changed since; ``None`` if unknown to the writer.
    """

    pod_uid: str = msgspec.field(name="podUID")
    sandbox_id: str = msgspec.field(name="sandboxID")
    interface: str
    mac: str
    mtu: int
    ips: tuple[str, ...] = ()
    routes: tuple[RecordedRoute, ...] = ()
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    domain: str | None = None
    # Named `asked` in the annotation.
    settings_digest: str | None = msgspec.field(default=None, name="asked")


class HotplugMark(_Annotation, frozen=True):
    """Mark of a link that was attached at run time and may therefore be detached at run time.

    It is written where there is no :class:`PodNic`: for links of ordinary pods, and if the CNI result is incomplete.

    :ivar pod_uid: the pod.
    :ivar interface: name of the pod interface.
    :ivar settings_digest: as in :class:`PodNic`.
    """

    pod_uid: str = msgspec.field(name="podUID")
    interface: str
    # Named `asked` in the annotation.
    settings_digest: str | None = msgspec.field(default=None, name="asked")


class NicSlots(_Annotation, frozen=True):
    """Number of NICs that still fit into the domain, counted by the handler.

    :ivar free: number of slots without a device.
    :ivar nics: number of NICs in the domain.
    :ivar pod_uid: the pod of that domain; another pod's domain has other slots.
    """

    free: int
    nics: int
    pod_uid: str = msgspec.field(name="podUID")


def operation_key(interface: str) -> str:
    """Return the key of the annotation with an interface's operation."""
    return f"{_OPERATION}{interface_hash(interface)}"


def unplug_key(interface: str) -> str:
    """Return the key of the annotation with an interface's unplug beside KubeVirt.

    It has a key of its own, because it is written before KubeVirt sets the VMI's interface to ``absent``. Until then
    the interface still belongs to its plug, which is in :func:`operation_key`.
    """
    return f"{_UNPLUG}{interface_hash(interface)}"


def pod_nic_key(interface: str) -> str:
    """Return the key of the pod annotation with an interface's pod NIC record."""
    return f"{PREFIX}pod-nic.{interface_hash(interface)}"


def pod_nic_key_of_link(pod_interface: str) -> str | None:
    """Return the key of the pod NIC record of a pod interface; ``None`` if its name is not hashed."""
    return f"{PREFIX}pod-nic.{pod_interface[3:]}" if is_hashed(pod_interface) else None


def is_hashed(pod_interface: str) -> bool:
    """Return whether a pod interface has a hashed name (``pod<h>``)."""
    return _HASHED.fullmatch(pod_interface) is not None


def hotplug_mark_key(pod_interface: str) -> str:
    """Return the key of the pod annotation with the hot-plug mark of a pod interface.

    It contains the hash of the link's own name, because the links of ordinary pods belong to no interface of a VMI.
    """
    return f"{PREFIX}attached.{interface_hash(pod_interface)}"


def read_hotplug_mark(annotations: dict[str, str], pod_interface: str) -> HotplugMark | None:
    """Return the hot-plug mark of a pod interface; ``None`` when it is absent, malformed or another link's."""
    text = annotations.get(hotplug_mark_key(pod_interface))
    if text is None or len(text) > MAX_OPERATION_BYTES:
        return None
    try:
        mark = _mark_decoder.decode(text)
    except RejectedInput:
        return None
    return mark if mark.interface == pod_interface else None


def is_operation_key(key: str) -> bool:
    """Return whether an annotation key is that of an operation."""
    return key.startswith(_OPERATION)


def is_unplug_key(key: str) -> bool:
    """Return whether an annotation key is that of an unplug beside KubeVirt."""
    return key.startswith(_UNPLUG)


def stale_operation_keys(annotations: Mapping[str, str], hashes: Container[str]) -> list[str]:
    """Return the keys of operations, of both kinds of key, whose interface is not in use any more.

    :param hashes: :func:`~schemas.names.interface_hash` of the interfaces in use.
    """
    return [
        key
        for key in annotations
        if (is_operation_key(key) or is_unplug_key(key)) and key.removeprefix(PREFIX).partition(".")[2] not in hashes
    ]


def derive_operation_id(uid: str, interface: str, kind: OperationKind, generation: int) -> str:
    """Return the id of an operation that has no annotation, for example after an edit with kubectl.

    Every role derives the same id.

    :param uid: UID of the object whose change it is: a VMI, a VM or a pod. An edit of a VM's template that applies to a
        running VMI has both UIDs, separated by a slash.
    :param interface: the interface; the pod interface where ``uid`` is that of a pod.
    :param generation: generation of the object; 0 for a pod.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{uid}/{interface}/{kind}/{generation}"))


_encoder = msgspec.json.Encoder()
# Users can write the annotations.
_operation_decoder = InputDecoder(Edge.ANNOTATION, Operation, max_bytes=MAX_OPERATION_BYTES)
_pod_nic_decoder = InputDecoder(Edge.ANNOTATION, PodNic, max_bytes=MAX_POD_NIC_BYTES)
_mark_decoder = InputDecoder(Edge.ANNOTATION, HotplugMark)
_nic_slots_decoder = InputDecoder(Edge.ANNOTATION, NicSlots)


def encode_annotation(record: Operation | PodNic | HotplugMark | NicSlots) -> str:
    """Return the value of an annotation.

    :raises AnnotationTooLarge: an operation or a pod NIC record exceeds the limit of its readers.
    """
    raw = _encoder.encode(record)
    if isinstance(record, Operation) and len(raw) > MAX_OPERATION_BYTES:
        raise AnnotationTooLarge(f"operation annotation has {len(raw)} bytes; the limit is {MAX_OPERATION_BYTES}")
    if isinstance(record, PodNic) and len(raw) > MAX_POD_NIC_BYTES:
        raise AnnotationTooLarge(
            f"pod NIC record of {record.interface} with {len(record.ips)} addresses and {len(record.routes)} routes "
            f"has {len(raw)} bytes; the limit is {MAX_POD_NIC_BYTES}"
        )
    return raw.decode()


def read_operation(annotations: Mapping[str, str], interface: str) -> Operation | None:
    """Return the operation of an interface from an object's annotations; ``None`` when it is absent or malformed.

    A malformed annotation, for example after an edit by hand, counts as absent: callers then use the derived id.
    """
    operation = read_operation_at(annotations, operation_key(interface))
    if operation is None or operation.interface != interface:
        return None
    return msgspec.structs.replace(operation, holder=None)


def held_by(operation: Operation, uid: str) -> Operation:
    """Return an operation as the annotation of the object with this UID has it."""
    return msgspec.structs.replace(operation, holder=uid)


def read_held(meta: ObjectMeta, key: str) -> Operation | None:
    """Return the operation in the annotation with this key, as :func:`read_operation_at`; ``None`` also for a copy.

    :param meta: metadata of the object that has the annotation.
    """
    operation = read_operation_at(meta.annotations, key)
    if operation is None or _is_copy(operation, meta):
        return None
    return msgspec.structs.replace(operation, holder=None)


def _is_copy(operation: Operation, meta: ObjectMeta) -> bool:
    if operation.holder is not None or operation.vm is not None:
        # Whoever reads an operation beside KubeVirt compares the VM.
        return operation.holder not in (None, meta.uid)
    # Of an earlier version. An operation that came with the object, such as one of a backup, was requested before the
    # object was created; a legitimate one after that, and always with a time.
    created, requested = meta.creation_timestamp, operation.requested_at or ""
    return created is not None and not (_TIME.fullmatch(requested) and requested[:_SECONDS] >= created[:_SECONDS])


def read_operation_of_link(annotations: Mapping[str, str], pod_interface: str) -> Operation | None:
    """Return the operation of a pod interface from the pod's annotations.

    ``None`` when its name is not hashed, and as in :func:`read_operation`.
    """
    return read_operation_at(annotations, f"{_OPERATION}{pod_interface[3:]}") if is_hashed(pod_interface) else None


def read_operation_at(annotations: Mapping[str, str], key: str) -> Operation | None:
    """Return the operation in the annotation with this key.

    ``None`` when it is absent, malformed, or names an interface with another hash.
    """
    operation = _decode_operation(annotations.get(key)) if is_operation_key(key) else None
    return operation if operation is not None and operation_key(operation.interface) == key else None


def read_unplug_at(annotations: Mapping[str, str], key: str) -> Operation | None:
    """Return the unplug beside KubeVirt in the annotation with this key, as :func:`read_operation_at`.

    ``None`` also when it is no unplug or names no VM.
    """
    operation = _decode_operation(annotations.get(key)) if is_unplug_key(key) else None
    if operation is None or operation.kind is not OperationKind.UNPLUG or operation.vm is None:
        return None
    return operation if unplug_key(operation.interface) == key else None


def _decode_operation(text: str | None) -> Operation | None:
    if text is None:
        return None
    try:
        operation = _operation_decoder.decode(text)
        if not _ID.fullmatch(operation.id):
            raise reject(Edge.ANNOTATION, RejectReason.INVALID, f"no id of an operation: {operation.id}")
        if operation.failed is not None and not _REASON.fullmatch(operation.failed):
            raise reject(Edge.ANNOTATION, RejectReason.INVALID, f"no reason of a failure: {operation.failed}")
    except RejectedInput:
        return None
    return operation


def read_pod_nic(annotations: dict[str, str], key: str | None) -> PodNic | None:
    """Return the pod NIC record in the annotation with this key; ``None`` when it is absent or malformed."""
    text = annotations.get(key) if key else None
    try:
        return _pod_nic_decoder.decode(text) if text is not None else None
    except RejectedInput:
        return None


def read_nic_slots(annotations: dict[str, str]) -> NicSlots | None:
    """Return the number of free slots; ``None`` when it is absent or malformed."""
    try:
        return _nic_slots_decoder.decode(annotations[NIC_SLOTS]) if NIC_SLOTS in annotations else None
    except RejectedInput:
        return None
