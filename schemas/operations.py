"""hotnic's own annotations: the operation, the pod NIC record and the count of free slots.

They are how a role that learns of work by watch, not by bus, joins the same operation and trace.
Next: :mod:`schemas.networks`, the annotations that are Multus'.
"""

import re
import uuid
from collections.abc import Container

import msgspec

from schemas.names import HASH_DIGITS, interface_hash
from schemas.stages import OperationKind

PREFIX = "hotnic.io/"
NIC_SLOTS = PREFIX + "nic-slots"
_OPERATION = PREFIX + "operation."
MAX_OPERATION_BYTES = 512
MAX_POD_NIC_BYTES = 8 * 1024
"""Some 190 routes. Kubernetes takes 256 KiB of annotations for a whole pod, and a guest has up to some 25 NICs."""

_HASHED = re.compile(rf"pod[0-9a-f]{{{HASH_DIGITS}}}")
_NAMESPACE = uuid.UUID("6f1c8f0a-7d0e-5f33-9c55-0b7a2e3f9d11")


class AnnotationTooLarge(ValueError):
    """An annotation that nobody would read again is not written."""


class _Record(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    pass


class Operation(_Record, frozen=True):
    """One plug or unplug of one interface of one VMI.

    :ivar id: a UUID; derived (:func:`derived_id`) where nobody wrote one.
    :ivar traceparent: W3C trace context of the request; ``None`` when it was not traced.
    :ivar requested_at: RFC 3339, UTC.
    :ivar released: UID of the pod whose wiring the handler has undone (unplug only).
    :ivar failed: CamelCase; why a plug ended for good. The unplug that undoes such a plug carries it on.
    """

    id: str
    kind: OperationKind
    interface: str
    traceparent: str | None = None
    requested_at: str | None = None
    released: str | None = None
    failed: str | None = None


class RecordedRoute(_Record, frozen=True):
    """A route of a pod NIC: destination in CIDR form, next hop (``None``: on link), metric."""

    dst: str
    gw: str | None = None
    priority: int | None = None


class PodNic(_Record, frozen=True):
    """What a pod NIC was before it was wired to a guest; taking a link down loses routes, IPv6 and the MAC for good.

    Valid only for the pod and sandbox it names.

    :ivar ips: addresses with prefix length. :ivar mtu: bytes.
    :ivar asked: digest of what its element asked for; ``None`` where whoever made the record did not know.
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
    asked: str | None = None


class HotplugMark(_Record, frozen=True):
    """This link of this pod was attached at run time, so it may be detached at run time.

    Written where no :class:`PodNic` says so: links of ordinary pods, and those whose plugin told too little.

    :ivar asked: as in :class:`PodNic`.
    """

    pod_uid: str = msgspec.field(name="podUID")
    interface: str
    asked: str | None = None


class NicSlots(_Record, frozen=True):
    """How many NICs still fit into the domain, counted by the handler for the pod it names."""

    free: int
    nics: int
    pod_uid: str = msgspec.field(name="podUID")


def operation_key(interface: str) -> str:
    """The annotation that holds the operation of an interface."""
    return f"{_OPERATION}{interface_hash(interface)}"


def pod_nic_key(interface: str) -> str:
    """The pod annotation that holds the record of an interface's pod NIC."""
    return f"{PREFIX}pod-nic.{interface_hash(interface)}"


def pod_nic_key_of_link(pod_interface: str) -> str | None:
    """The same key, from a hashed pod interface name; ``None`` for a name that is not hashed."""
    return f"{PREFIX}pod-nic.{pod_interface[3:]}" if is_hashed(pod_interface) else None


def is_hashed(pod_interface: str) -> bool:
    """Whether a pod interface has a name of the hashed scheme (``pod<h>``)."""
    return _HASHED.fullmatch(pod_interface) is not None


def hotplug_mark_key(pod_interface: str) -> str:
    """The pod annotation that marks an attachment made at run time, where no pod NIC record does."""
    return f"{PREFIX}attached.{interface_hash(pod_interface)}"


def hotplug_mark_of(annotations: dict[str, str], pod_interface: str) -> HotplugMark | None:
    """The mark of an attachment made at run time; ``None`` when absent, unreadable or another link's."""
    text = annotations.get(hotplug_mark_key(pod_interface))
    if text is None or len(text) > MAX_OPERATION_BYTES:
        return None
    try:
        mark = _attached.decode(text)
    except msgspec.DecodeError:
        return None
    return mark if mark.interface == pod_interface else None


def is_operation_key(key: str) -> bool:
    """Whether an annotation holds an operation, of whatever interface."""
    return key.startswith(_OPERATION)


def stale_operations(annotations: dict[str, str], hashes: Container[str]) -> list[str]:
    """The keys of operations whose interface is none of these.

    :param hashes: :func:`~schemas.names.interface_hash` of the interfaces that still mean something.
    """
    return [key for key in annotations if is_operation_key(key) and key.removeprefix(_OPERATION) not in hashes]


def derived_id(vmi_uid: str, interface: str, kind: OperationKind, generation: int) -> str:
    """The id of an operation nobody wrote down (an edit with kubectl): everyone derives the same."""
    return str(uuid.uuid5(_NAMESPACE, f"{vmi_uid}/{interface}/{kind}/{generation}"))


_encoder = msgspec.json.Encoder()
_operation = msgspec.json.Decoder(Operation)
_pod_nic = msgspec.json.Decoder(PodNic)
_attached = msgspec.json.Decoder(HotplugMark)
_nic_slots = msgspec.json.Decoder(NicSlots)


def encode(record: Operation | PodNic | HotplugMark | NicSlots) -> str:
    """The annotation's text.

    :raises TooLarge: an operation or a pod NIC record beyond the limit of those who read it.
    """
    raw = _encoder.encode(record)
    if isinstance(record, Operation) and len(raw) > MAX_OPERATION_BYTES:
        raise AnnotationTooLarge(f"operation of {len(raw)} bytes; at most {MAX_OPERATION_BYTES} fit an annotation")
    if isinstance(record, PodNic) and len(raw) > MAX_POD_NIC_BYTES:
        raise AnnotationTooLarge(
            f"record of {record.interface} with {len(record.ips)} addresses and {len(record.routes)} routes has "
            f"{len(raw)} bytes; at most {MAX_POD_NIC_BYTES} fit an annotation"
        )
    return raw.decode()


def operation_of(annotations: dict[str, str], interface: str) -> Operation | None:
    """The operation of an interface as its object carries it; ``None`` when absent or unreadable.

    An unreadable one (edited by hand) counts as absent: the derived id then stands in.
    """
    operation = operation_under(annotations, operation_key(interface))
    return operation if operation is not None and operation.interface == interface else None


def operation_of_link(annotations: dict[str, str], pod_interface: str) -> Operation | None:
    """The operation behind a hashed pod interface name, read off the pod; ``None`` as for :func:`operation_of`."""
    return operation_under(annotations, f"{_OPERATION}{pod_interface[3:]}") if is_hashed(pod_interface) else None


def operation_under(annotations: dict[str, str], key: str) -> Operation | None:
    """The operation that an annotation holds; ``None`` when it holds none, or one of another interface."""
    text = annotations.get(key)
    if text is None or not is_operation_key(key) or len(text) > MAX_OPERATION_BYTES:
        return None
    try:
        operation = _operation.decode(text)
    except msgspec.DecodeError:
        return None
    return operation if operation_key(operation.interface) == key else None


def pod_nic_of(annotations: dict[str, str], key: str | None) -> PodNic | None:
    """The pod NIC record under a key; ``None`` when absent or unreadable."""
    text = annotations.get(key) if key else None
    if text is None or len(text) > MAX_POD_NIC_BYTES:
        return None
    try:
        return _pod_nic.decode(text)
    except msgspec.DecodeError:
        return None


def nic_slots_of(annotations: dict[str, str]) -> NicSlots | None:
    """The count of free slots; ``None`` when the handler has not written one."""
    try:
        return _nic_slots.decode(annotations[NIC_SLOTS]) if NIC_SLOTS in annotations else None
    except msgspec.DecodeError:
        return None
