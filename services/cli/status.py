"""``hotnic status``: how far each NIC of a VM has come, since when, and why it does not go on.

By hotnic's api; where that does not answer, folded from objects (:mod:`services.cli.hotplug_status`), with
what only events know shown as unknown. For a NIC that is not done, why not follows on standard error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from services.cli.cluster import Where, call, cluster_options, find_vmi
from services.cli.examples import examples
from services.cli.output import NONE, UNKNOWN, as_json, as_line, row, table, widths

if TYPE_CHECKING:
    from schemas.hotplug_status import InterfaceHotplugStatus
    from schemas.kube import VirtualMachineInstance
    from services.cli.hotplug_status import Shown
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

Warnings: TypeAlias = dict[str, list[str]]
"""By interface: what the services reported about those that are not done."""


@click.command(
    epilog=examples(
        "hotnic status vm1",
        "hotnic status vm1 -n tenant -o wide",
        "hotnic status vm1 --watch",
    )
)
@click.argument("vmi", metavar="VM")
@click.option("-w", "--watch", is_flag=True, help="Go on with a line for each change, until interrupted.")
@click.option("-o", "--output", type=click.Choice(["wide", "json"]), help="More columns, or JSON.")
@cluster_options
def status(
    vmi: str, watch: bool, output: str | None, namespace: str | None, context: str | None, kubeconfig: str | None
) -> None:
    """Show how far each network card of the running VM has come."""
    where = Where(namespace, context, kubeconfig)
    if watch:
        call(where, lambda kube, ns: _follow(kube, ns, vmi, output))
        return
    seen, shown, warnings = call(where, lambda kube, ns: _look(kube, ns, vmi))
    if output == "json":
        click.echo(as_json(document(seen, shown, warnings)))
        return
    wide = output == "wide"
    if shown.nic_statuses:
        click.echo(
            table(
                WIDE_COLUMNS if wide else COLUMNS, [cells(nic_status, wide=wide) for nic_status in shown.nic_statuses]
            )
        )
    _explain(seen, shown, warnings)


async def _look(kube: Kube, namespace: str, name: str) -> tuple[VirtualMachineInstance, Shown, Warnings]:
    from services.cli.hotplug_status import read
    from services.cli.reports import warnings

    vmi = await find_vmi(kube, namespace, name)
    shown = await read(kube, vmi)
    reported = {
        nic_status.interface: await warnings(kube, vmi, nic_status.interface)
        for nic_status in shown.nic_statuses
        if not nic_status.complete
    }
    return vmi, shown, {interface: texts for interface, texts in reported.items() if texts}


async def _follow(kube: Kube, namespace: str, name: str, output: str | None) -> None:
    from services.cli.hotplug_status import follow

    vmi = await find_vmi(kube, namespace, name)
    lines = Lines(wide=output == "wide")
    degraded: str | None = None

    def show(shown: Shown) -> None:
        nonlocal degraded
        if output == "json":
            click.echo(as_line(document(vmi, shown, {})))
            return
        for line in lines.of(shown.nic_statuses):
            click.echo(line)
        if shown.degraded != degraded:
            degraded = shown.degraded
            click.echo(_degraded(shown) if degraded else "all is known again", err=True)

    await follow(kube, vmi, show)
    click.echo(f"{namespace}/{name} is gone", err=True)


class Lines:
    """A table that goes on: its head and all rungs first, then those that are new or changed, and those that went."""

    def __init__(self, *, wide: bool) -> None:
        self._wide = wide
        self._columns = WIDE_COLUMNS if wide else COLUMNS
        self._widths: list[int] = []
        self._last: dict[str, list[str]] = {}

    def of(self, nic_statuses: Sequence[InterfaceHotplugStatus]) -> list[str]:
        """The lines to print."""
        found = {nic_status.interface: cells(nic_status, wide=self._wide) for nic_status in nic_statuses}
        fresh = [line for name, line in found.items() if self._last.get(name) != line]
        rest = [NONE] * (len(self._columns) - 3)
        fresh += [[*line[:2], "gone", *rest] for name, line in self._last.items() if name not in found]
        head = [] if self._widths or not fresh else [list(self._columns)]
        if head:
            self._widths = widths([*head, *fresh])
        self._last = found
        return [row(line, self._widths) for line in (*head, *fresh)]


def _explain(vmi: VirtualMachineInstance, shown: Shown, warnings: Warnings) -> None:
    meta = vmi.metadata
    if not shown.nic_statuses:
        click.echo(f"{meta.namespace}/{meta.name} has no card but that of the pod network", err=True)
    if shown.degraded:
        click.echo(_degraded(shown), err=True)
    for nic_status in shown.nic_statuses:
        told = (
            [f"{nic_status.reason}: {nic_status.message}"]
            if nic_status.message
            else warnings.get(nic_status.interface, [])
        )
        for text in told:
            click.echo(f"{nic_status.interface}: {text}", err=True)


def _degraded(shown: Shown) -> str:
    return f"times, attempts and reasons may be missing: {shown.why}"


def document(vmi: VirtualMachineInstance, shown: Shown, warnings: Warnings) -> dict[str, Any]:
    """What ``-o json`` prints."""
    return {
        "namespace": vmi.metadata.namespace,
        "vmi": vmi.metadata.name,
        "phase": vmi.status.phase,
        "node": vmi.status.node_name,
        "degraded": shown.degraded,
        "interfaces": shown.nic_statuses,
        "warnings": warnings,
    }


def cells(nic_status: InterfaceHotplugStatus, *, wide: bool) -> list[str]:
    """One line of the table."""
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
            nic_status.link or NONE,
            (nic_status.info_source or NONE).replace(", ", ","),
            nic_status.at_restart or NONE,
        ]
    return line
