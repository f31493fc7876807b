"""The hot-plug status of a VM's interfaces, as the key-value bucket stores it and the api serves it. Types only.

Stages are derived from objects in :mod:`services.common.domain.status.hotplug_status`; events add times and failures in
:mod:`services.common.domain.status.stage_history`.
"""

from typing import Any, TypeVar

import msgspec

from schemas.inputs import Edge, InputDecoder, RejectedInput
from schemas.stages import OperationKind, Stage

T = TypeVar("T", bound=msgspec.Struct)

BUCKET = "hotplug-status"
"""Name of the bucket; its keys are :class:`schemas.bus.encoding.StatusKey`."""
MAX_ENTRY_BYTES = 16 * 1024
"""Larger values are ignored; :func:`encode_entry` makes none."""
MAX_WRITTEN_BYTES = 8 * 1024
"""Limit of what is written, because all VMs share the bucket. An entry has some hundred bytes."""
_CUTS = (1024, 253, 64, 16)
"""Characters to which the texts of an entry over the limit are cut, until it is within."""

LIST_KIND = "HotplugStatus"
LIST_VERSION = "subresources.hotnic.io/v1"
"""``apiVersion`` of the api's response."""


class _Document(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    pass


class InterfaceHotplugStatus(_Document, frozen=True):
    """The hot-plug status of one interface.

    :ivar network: the NAD as the spec names it, with or without its namespace.
    :ivar kind: whether the interface is being plugged or unplugged, or was.
    :ivar stage: the last stage that the operation has reached.
    :ivar operation: id of the operation; empty for a change of the template that has none yet, and beside KubeVirt for
        an interface that has none.
    :ivar waiting_for: the next stage; ``None`` when the operation is complete.
    :ivar since: when the stage was reached, RFC 3339; ``None`` if unknown.
    :ivar reason: CamelCase; why the next stage is not reached.
    :ivar message: the same as text for users.
    :ivar remedy: what a user can do about the reason; ``None`` when there is nothing to do, or nothing is known.
    :ivar docs: page and section of the documentation about the reason.
    :ivar attempts: if attempts at the next stage have failed, their number; otherwise the number of the attempt that
        reached the stage. ``None`` if unknown.
    :ivar last_attempt: time of the last failed attempt at the next stage, RFC 3339.
    :ivar guest_interface: name of the link in the guest, from the guest agent.
    :ivar info_source: the tokens of ``infoSource`` in the VMI's status, separated by commas.
    :ivar link_state: link state of the guest NIC, ``up`` or ``down``.
    :ivar failed: CamelCase; the final failure of the plug. The status may then describe the unplug that undoes it.
    :ivar at_restart: how the next start of the VM changes the interface, if the VM's template differs from the VMI:
        ``gone`` (the template does not have it), ``back`` (it is unplugged until then) or ``changed`` (it gets other
        settings). ``None`` if the start changes nothing.
    """

    interface: str
    network: str
    kind: OperationKind
    stage: Stage
    operation: str
    waiting_for: Stage | None = None
    since: str | None = None
    requested_at: str | None = None
    reason: str | None = None
    message: str | None = None
    attempts: int | None = None
    last_attempt: str | None = None
    trace_id: str | None = None
    pod_interface: str | None = None
    mac: str | None = None
    ips: tuple[str, ...] = ()
    guest_interface: str | None = None
    info_source: str | None = None
    link_state: str | None = None
    failed: str | None = None
    at_restart: str | None = None
    remedy: str | None = None
    docs: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the operation has reached its last stage."""
        return self.waiting_for is None


class StageReached(_Document, frozen=True, order=True):
    """A stage that was reached.

    :ivar time: RFC 3339, UTC.
    :ivar attempt: number of the attempt that reached it.
    """

    time: str
    attempt: int = 1


class LastFailure(_Document, frozen=True, order=True):
    """The last failed attempt of an operation.

    :ivar time: RFC 3339, UTC; empty if unknown.
    :ivar attempt: number of the attempt.
    :ivar at: the stage that the attempt was to reach.
    """

    time: str
    attempt: int
    at: Stage
    reason: str
    message: str = ""


class StageHistory(_Document, frozen=True):
    """What events report about one operation on one pod.

    :ivar reached: the stages that were reached.
    :ivar last_failure: the last failed attempt.
    """

    reached: dict[Stage, StageReached] = {}
    last_failure: LastFailure | None = None


class StatusEntry(_Document, frozen=True):
    """The value of one key of the bucket.

    :ivar vmi_uid: UID of the VMI; a later VMI of the same name has another one.
    :ivar pod_uid: UID of the pod that the history is about.
    """

    vmi_uid: str = msgspec.field(name="vmiUID")
    pod_uid: str = msgspec.field(name="podUID")
    status: InterfaceHotplugStatus
    history: StageHistory = StageHistory()


class StoredEntry(_Document, frozen=True):
    """One key of the bucket with its value.

    :ivar hash: last token of the key.
    :ivar entry: ``None`` when the value cannot be decoded.
    """

    hash: str
    entry: StatusEntry | None = None


class HotplugStatus(_Document, frozen=True):
    """The response of the api: the hot-plug status of all interfaces of a VMI.

    :ivar metadata: ``namespace`` and ``name`` of the VMI, and ``resourceVersion``, from which a watch resumes.
    :ivar degraded: the source that was unavailable (``bus``); times and reasons may then be missing.
    :ivar stored: all entries of the bucket for this VMI; present with ``?stored=true`` while the bus is available.
    """

    kind: str
    api_version: str
    metadata: dict[str, str]
    items: tuple[InterfaceHotplugStatus, ...] = ()
    degraded: str | None = None
    stored: tuple[StoredEntry, ...] | None = None


class HotplugStatusEvent(_Document, frozen=True):
    """One line of a watch.

    :ivar type: ``ADDED``, ``MODIFIED`` or ``DELETED``; the last line is ``BOOKMARK``.
    """

    type: str
    object: HotplugStatus


_encode = msgspec.json.Encoder().encode
_entry_decoder = InputDecoder(Edge.KV, StatusEntry, max_bytes=MAX_ENTRY_BYTES)


def encode_entry(entry: StatusEntry) -> bytes:
    """Return the encoded value of an entry. Texts of one that is too large are cut: users write most of them."""
    value = _encode(entry)
    for limit in _CUTS if len(value) > MAX_WRITTEN_BYTES else ():
        value = _encode(_cut(entry, limit))
        if len(value) <= MAX_WRITTEN_BYTES:
            break
    return value


def _cut(part: T, limit: int) -> T:
    """Return a struct whose texts have at most some characters, and whose lists at most an eighth as many items."""
    changed: dict[str, Any] = {}
    for name in part.__struct_fields__:
        value = getattr(part, name)
        if type(value) is str:
            changed[name] = value[:limit]
        elif type(value) is tuple:
            changed[name] = tuple(item[:limit] for item in value[: limit // 8])
        elif isinstance(value, msgspec.Struct):
            changed[name] = _cut(value, limit)
    return msgspec.structs.replace(part, **changed)


def decode_entry(value: bytes | None) -> StatusEntry | None:
    """Decode a value of the bucket; return ``None`` when it is not an entry, so that the caller overwrites it."""
    try:
        return _entry_decoder.decode(value) if value is not None else None
    except RejectedInput:
        return None


def new_hotplug_status(
    namespace: str, name: str, version: str, nic_statuses: tuple[InterfaceHotplugStatus, ...], degraded: str | None
) -> HotplugStatus:
    """Return the response for one VMI."""
    metadata = {"namespace": namespace, "name": name, "resourceVersion": version}
    return HotplugStatus(LIST_KIND, LIST_VERSION, metadata, nic_statuses, degraded)


def encode_json(value: Any) -> bytes:
    """Return a hot-plug status, or one line of its watch, as JSON."""
    return _encode(value)
