"""The ladder: where each NIC stands, as the key-value bucket keeps it and the api serves it. Types, no decisions.

How a rung is folded from objects: :mod:`services.common.domain.hotplug_status`; what events add to it:
:mod:`services.common.domain.stage_history`.
"""

from typing import Any

import msgspec

from schemas.stages import OperationKind, Stage

BUCKET = "hotplug-status"
"""The bucket; its keys are :class:`schemas.encoding.StatusKey`."""
MAX_ENTRY_BYTES = 16 * 1024
"""A larger value is not read: nobody of ours wrote it."""

LIST_KIND = "HotplugStatus"
LIST_VERSION = "subresources.hotnic.io/v1"


class _Record(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    pass


class InterfaceHotplugStatus(_Record, frozen=True):
    """Where one NIC stands.

    :ivar waiting_for: the next stage; ``None`` when the operation is complete.
    :ivar since: RFC 3339; when the stage was reached; ``None`` is unknown.
    :ivar reason: CamelCase; why the next stage is not reached; :ivar message: the same for people.
    :ivar attempts: failed ones at the next stage, else how many the stage reached took; ``None`` is unknown.
    :ivar last_attempt: RFC 3339; when the last failed one was.
    :ivar link: ``up`` or ``down``: whether the card's cable is plugged.
    :ivar failed: CamelCase; why the plug ended for good (then the rung may be of the unplug that undoes it).
    :ivar at_restart: what the VM's template will do at the next start to a NIC it differs on: ``gone``, ``back``
        or ``changed``.
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
    link: str | None = None
    failed: str | None = None
    at_restart: str | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing more is to come."""
        return self.waiting_for is None


class StageReached(_Record, frozen=True, order=True):
    """A stage was reached: when (RFC 3339, UTC) and at which attempt."""

    time: str
    attempt: int = 1


class LastFailure(_Record, frozen=True, order=True):
    """An attempt that failed: when, its number, the stage that was to be reached, why."""

    time: str
    attempt: int
    at: Stage
    reason: str
    message: str = ""


class StageHistory(_Record, frozen=True):
    """What events have told of one operation on one pod. :ivar last_failure: the last attempt that failed."""

    reached: dict[Stage, StageReached] = {}
    last_failure: LastFailure | None = None


class StatusEntry(_Record, frozen=True):
    """The value of one key.

    :ivar vmi_uid: of the VMI, whose name may since be another's. :ivar pod_uid: of the pod the news are of.
    """

    vmi_uid: str = msgspec.field(name="vmiUID")
    pod_uid: str = msgspec.field(name="podUID")
    status: InterfaceHotplugStatus
    history: StageHistory = StageHistory()


class StoredEntry(_Record, frozen=True):
    """One key of the bucket as it stands there. :ivar hash: its last part; :ivar entry: ``None`` when unreadable."""

    hash: str
    entry: StatusEntry | None = None


class HotplugStatus(_Record, frozen=True):
    """The answer of the api.

    :ivar metadata: ``namespace``, ``name`` of the VMI, and ``resourceVersion``, by which a watch goes on.
    :ivar degraded: what could not be asked, so that times and reasons may be missing (``bus``).
    :ivar stored: all that the bucket holds for this VMI, where ``?stored=true`` asks for it and the bus answers.
    """

    kind: str
    api_version: str
    metadata: dict[str, str]
    items: tuple[InterfaceHotplugStatus, ...] = ()
    degraded: str | None = None
    stored: tuple[StoredEntry, ...] | None = None


class HotplugStatusEvent(_Record, frozen=True):
    """One line of a watch: ``ADDED``, ``MODIFIED``, ``DELETED`` with the whole ladder, or ``BOOKMARK``, the last."""

    type: str
    object: HotplugStatus


_encode = msgspec.json.Encoder().encode
_entry = msgspec.json.Decoder(StatusEntry)


def encode(entry: StatusEntry) -> bytes:
    """The value of an entry."""
    return _encode(entry)


def entry_of(value: bytes | None) -> StatusEntry | None:
    """The entry in a value; ``None`` when it cannot be read: it is then written anew."""
    if value is None or len(value) > MAX_ENTRY_BYTES:
        return None
    try:
        return _entry.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def hotplug_status(
    namespace: str, name: str, version: str, nic_statuses: tuple[InterfaceHotplugStatus, ...], degraded: str | None
) -> HotplugStatus:
    """The answer about one VMI."""
    metadata = {"namespace": namespace, "name": name, "resourceVersion": version}
    return HotplugStatus(LIST_KIND, LIST_VERSION, metadata, nic_statuses, degraded)


def as_json(value: Any) -> bytes:
    """Any of these as JSON."""
    return _encode(value)
