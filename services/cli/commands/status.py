"""``hotnic status``: shows the hot-plug status of a VM's network interfaces.

For each interface with an operation in progress, the last failure or the warning events follow on standard error.
Beside KubeVirt it is the reason, with what a user can do about it.
Next: :mod:`services.cli.operations.hotplug_status`, which reads the status.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from services.cli.cluster import ClusterTarget, cluster_options, find_vmi, run_with_cluster
from services.cli.output import NONE, UNKNOWN, examples, row, say, say_json, table, widths

if TYPE_CHECKING:
    from schemas.bus.hotplug_status import InterfaceHotplugStatus
    from schemas.kubernetes.objects import VirtualMachineInstance
    from services.cli.operations.hotplug_status import StatusView
    from services.common.kube.client import Kube

COLUMNS = ("INTERFACE", "NETWORK", "STAGE", "SINCE", "REASON", "ATTEMPTS", "OPERATION", "TRACE")
WIDE_COLUMNS = (
    *COLUMNS,
    "REQUESTED",
    "MAC",
    "IPS",
    "POD-INTERFACE",
    "GUEST-INTERFACE",
    "LINK",
    "SEEN-BY",
    "AT-RESTART",
)

WarningsByInterface: TypeAlias = dict[str, list[str]]
"""The messages of warning events by interface, for interfaces with an operation in progress."""


@click.command(
    epilog=examples(
        "hotnic status vm1",
        "hotnic status vm1 -n tenant -o wide",
        "hotnic status vm1 --watch",
    )
)
@click.argument("vmi", metavar="VM")
@click.option("-w", "--watch", is_flag=True, help="Print a line for each change, until interrupted.")
@click.option("-o", "--output", type=click.Choice(["wide", "json"]), help="Print more columns, or JSON.")
@cluster_options
def status(
    vmi: str, watch: bool, output: str | None, namespace: str | None, context: str | None, kubeconfig: str | None
) -> None:
    """Show the hot-plug status of the running VM's network interfaces.

    For an interface that waits, the cause and what to do follow on standard error.
    """
    target = ClusterTarget(namespace, context, kubeconfig)
    if watch:
        run_with_cluster(target, lambda kube, ns: _follow(kube, ns, vmi, output))
        return
    vmi_object, view, warnings = run_with_cluster(target, lambda kube, ns: _read(kube, ns, vmi))
    if output == "json":
        say_json(document(vmi_object, view, warnings))
        return
    wide = output == "wide"
    if view.nic_statuses:
        rows = [cells(nic_status, wide=wide) for nic_status in view.nic_statuses]
        say(*table(WIDE_COLUMNS if wide else COLUMNS, rows))
    _print_messages(vmi_object, view, warnings)


async def _read(
    kube: Kube, namespace: str, name: str
) -> tuple[VirtualMachineInstance, StatusView, WarningsByInterface]:
    from services.cli.operations.hotplug_status import read_status, read_warnings

    vmi = await find_vmi(kube, namespace, name)
    view = await read_status(kube, vmi)
    reported = {
        nic_status.interface: await read_warnings(kube, vmi, nic_status.interface)
        for nic_status in view.nic_statuses
        if not nic_status.complete
    }
    return vmi, view, {interface: texts for interface, texts in reported.items() if texts}


async def _follow(kube: Kube, namespace: str, name: str, output: str | None) -> None:
    from services.cli.operations.hotplug_status import follow_status

    vmi = await find_vmi(kube, namespace, name)
    watch_table = WatchTable(wide=output == "wide")
    degraded: str | None = None

    def show(view: StatusView) -> None:
        nonlocal degraded
        if output == "json":
            say_json(document(vmi, view, {}), indent=False)
            return
        say(*watch_table.update(view.nic_statuses))
        if view.degraded != degraded:
            degraded = view.degraded
            say(_degraded(view) if degraded else "the hot-plug status is complete again", err=True)

    await follow_status(kube, vmi, show)
    say(f"{namespace}/{name} was deleted or stopped", err=True)


class WatchTable:
    """The table of ``--watch``: first the header and all interfaces, then each interface that changes."""

    def __init__(self, *, wide: bool) -> None:
        self._wide = wide
        self._columns = WIDE_COLUMNS if wide else COLUMNS
        self._widths: list[int] = []
        self._last: dict[str, list[str]] = {}

    def update(self, nic_statuses: Sequence[InterfaceHotplugStatus]) -> list[str]:
        """Return the lines to print for the current status."""
        found = {nic_status.interface: cells(nic_status, wide=self._wide) for nic_status in nic_statuses}
        changed = [line for name, line in found.items() if self._last.get(name) != line]
        rest = [NONE] * (len(self._columns) - 3)
        changed += [[*line[:2], "removed", *rest] for name, line in self._last.items() if name not in found]
        header = [] if self._widths or not changed else [list(self._columns)]
        # The widths of the first table remain, because printed lines cannot be aligned again.
        if header:
            self._widths = widths([*header, *changed])
        self._last = found
        return [row(line, self._widths) for line in (*header, *changed)]


def _print_messages(vmi: VirtualMachineInstance, view: StatusView, warnings: WarningsByInterface) -> None:
    meta = vmi.metadata
    if not view.nic_statuses:
        say(f"no secondary network interfaces found in {meta.namespace}/{meta.name}", err=True)
    if view.degraded:
        say(_degraded(view), err=True)
    for nic_status in view.nic_statuses:
        for text in explain(nic_status, warnings.get(nic_status.interface, [])):
            say(f"{nic_status.interface}: {text}", err=True)


def explain(nic_status: InterfaceHotplugStatus, warnings: Sequence[str]) -> list[str]:
    """Return why an interface's operation does not go on, what a user can do, and where to read on.

    :param warnings: the messages of its warning events. A failure's message says the same, a reason from objects less,
        if it does not have the event itself. The controller's event about a reason is the reason again.
    """
    from services.common.domain.kubevirt.reasons import REASONS

    texts = [f"{nic_status.reason}: {nic_status.message}"] if nic_status.message else []
    if nic_status.remedy:
        texts.append(f"what to do: {nic_status.remedy}")
    if nic_status.docs:
        texts.append(f"see {nic_status.docs}")
    if texts and not nic_status.docs:
        return texts
    said = (warning in (nic_status.message or "") or warning.partition(":")[0] in REASONS for warning in warnings)
    return texts + [warning for warning, is_said in zip(warnings, said, strict=True) if not is_said]


def _degraded(view: StatusView) -> str:
    return f"times, attempts and reasons may be missing: {view.cause}"


def document(vmi: VirtualMachineInstance, view: StatusView, warnings: WarningsByInterface) -> dict[str, Any]:
    """Return the document for ``-o json``."""
    return {
        "namespace": vmi.metadata.namespace,
        "vmi": vmi.metadata.name,
        "phase": vmi.status.phase,
        "node": vmi.status.node_name,
        "degraded": view.degraded,
        "interfaces": view.nic_statuses,
        "warnings": warnings,
    }


def cells(nic_status: InterfaceHotplugStatus, *, wide: bool) -> list[str]:
    """Return one line of the table."""
    line = [
        nic_status.interface,
        nic_status.network or NONE,
        str(nic_status.stage),
        nic_status.since or UNKNOWN,
        nic_status.reason or NONE,
        UNKNOWN if nic_status.attempts is None else str(nic_status.attempts),
        nic_status.operation or NONE,
        nic_status.trace_id or NONE,
    ]
    if wide:
        line += [
            nic_status.requested_at or UNKNOWN,
            nic_status.mac or NONE,
            ",".join(nic_status.ips) or NONE,
            nic_status.pod_interface or NONE,
            nic_status.guest_interface or NONE,
            nic_status.link_state or NONE,
            (nic_status.info_source or NONE).replace(", ", ","),
            nic_status.at_restart or NONE,
        ]
    return line
