"""The table of KubeVirt's versions: how each one handles the network interfaces of a running VM.

No object is read or written here. Next: `specs.py`, which makes a VMI follow its VM.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

LATEST_PATCH: Final = {
    "1.0": "1.0.1",
    "1.1": "1.1.0",
    "1.2": "1.2.0",
    "1.3": "1.3.0",
    "1.4": "1.4.0",
    "1.5": "1.5.3",
    "1.6": "1.6.0",
    "1.7": "1.7.0",
    "1.8": "1.8.0",
    "1.9": "1.9.0",
}
"""The release that is played for each minor version."""

RECORDED: Final = frozenset({"1.0.1", "1.9.0"})
"""The releases whose objects were recorded; all others follow KubeVirt's source."""

HOTPLUG_GATE: Final = "HotplugNICs"
NAD_GATE: Final = "LiveUpdateNADRef"


class UnknownVersionError(ValueError):
    """A version of KubeVirt that the player does not know."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one version with its feature gates handles interfaces.

    :ivar release: the release, such as `1.9.0`.
    :ivar enabled: whether interfaces are hot-plugged at all; a feature gate decides until 1.3.
    :ivar request_queue: requests in the VM's `status.interfaceRequests` are applied (1.0).
    :ivar template_edits: edits of the VM's template are applied (1.1 and later).
    :ivar link_state: `state: up` and `down` are applied (1.5 and later).
    :ivar nad_change: another NAD of an existing network is applied, by a migration (1.8 with its gate, 1.9).
    :ivar clears_template_last: an absent interface leaves the template once VMI and status have dropped it (1.6).
    :ivar clears_stopped: an absent interface leaves the template of a stopped VM (1.0.1, 1.6 and later).
    :ivar upstream_elements: elements have the key order of the Multus API, not that of 1.0, and SR-IOV is left out.
    :ivar empties_annotation: the annotation becomes empty with the last interface, which 1.0 and 1.1 never take out.
    :ivar network_edit_needs_restart: every edit of networks sets RestartRequired (1.2 to 1.5.0).
    :ivar restart_condition: an edit that cannot be applied sets RestartRequired, and taking it back removes it (1.5.1).
    :ivar automatic_migration: MigrationRequired is set, and workload updates follow (1.6 and later).
    :ivar entry_fields: fields of `status.interfaces` that only some versions have.
    """

    release: str
    enabled: bool
    request_queue: bool
    template_edits: bool
    link_state: bool
    nad_change: bool
    clears_template_last: bool
    clears_stopped: bool
    upstream_elements: bool
    empties_annotation: bool
    network_edit_needs_restart: bool
    restart_condition: bool
    automatic_migration: bool
    entry_fields: frozenset[str]

    @property
    def minor(self) -> int:
        """The second number of the version."""
        return int(self.release.split(".")[1])

    @property
    def recorded(self) -> bool:
        """Whether objects of this release were recorded."""
        return self.release in RECORDED


def behaviour_of(version: str, gates: Iterable[str] = ()) -> Behaviour:
    """Return the behaviour of a version: `1.9`, `1.5.0` or `v1.0.1`.

    :param gates: the feature gates that are on.
    :raises UnknownVersionError: it is not one of 1.0 to 1.9.
    """
    match = re.fullmatch(r"v?(1\.\d)(?:\.(\d+))?", version)
    if match is None or match[1] not in LATEST_PATCH:
        raise UnknownVersionError(f"KubeVirt {version} is not known; choose one of {', '.join(LATEST_PATCH)}")
    release = f"{match[1]}.{match[2]}" if match[2] else LATEST_PATCH[match[1]]
    number = tuple(int(part) for part in release.split("."))
    on = frozenset(gates)
    later = {"podInterfaceName": (1, 4, 0), "linkState": (1, 5, 0)}
    return Behaviour(
        release=release,
        enabled=number >= (1, 4, 0) or HOTPLUG_GATE in on,
        request_queue=number < (1, 1, 0),
        template_edits=number >= (1, 1, 0),
        link_state=number >= (1, 5, 0),
        nad_change=number >= (1, 9, 0) or (number >= (1, 8, 0) and NAD_GATE in on),
        clears_template_last=number >= (1, 6, 0),
        clears_stopped=number[:2] == (1, 0) or number >= (1, 6, 0),
        upstream_elements=number >= (1, 1, 0),
        empties_annotation=number >= (1, 2, 0),
        network_edit_needs_restart=(1, 2, 0) <= number <= (1, 5, 0),
        restart_condition=number > (1, 5, 0),
        automatic_migration=number >= (1, 6, 0),
        entry_fields=frozenset(name for name, since in later.items() if number >= since),
    )
