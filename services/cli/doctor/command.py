"""``hotnic doctor``: checks the network interfaces of VMs for inconsistencies and prints how to repair each finding.

With the API server alone it compares objects. As root on a node it also compares the links, records, leases and guest
devices there. With an address of NATS it also checks the streams of the bus. A finding is reported if two snapshots
have it. With ``--fix`` it removes what is left over.
The checks: :mod:`services.cli.doctor.checks`; the changes: :mod:`services.cli.doctor.fix`.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from services.cli.bus import bus_option
from services.cli.cluster import ClusterTarget, cluster_message, cluster_options, run_with_cluster
from services.cli.output import UNKNOWN, examples, say, say_json

if TYPE_CHECKING:
    from services.cli.doctor.collect.node_files import NodeSettings
    from services.cli.doctor.fix.rounds import FixReport, MadeChange
    from services.cli.doctor.snapshot import DoctorReport, Finding
    from services.common.kube.client import Kube

CONFIRMATION_DELAY = 1.0
"""Seconds between two snapshots; a change that the first one shows half-done has completed by the second."""

_SETTINGS = {
    "cri_socket": "HOTNIC_CRI_SOCKET",
    "cni_state_dir": "HOTNIC_CNI_STATE_DIR",
    "socket_dir": "HOTNIC_SOCKET_DIR",
    "qmp_socket": "HOTNIC_QMP_SOCKET",
    "host_root": "HOTNIC_HOST_ROOT",
    "host_process": "HOTNIC_HOST_PROCESS",
}


class NodePathsType(click.ParamType[dict[str, str]]):
    """An option value ``NAME=PATH[,NAME=PATH…]``, converted to paths by name."""

    name = "node-paths"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        """Return the paths by name."""
        if isinstance(value, dict):
            return value
        found = {}
        for item in str(value).split(","):
            key, equals, path = item.partition("=")
            key = key.strip().replace("-", "_")
            if key not in _SETTINGS or not equals or not path:
                names = ", ".join(name.replace("_", "-") for name in _SETTINGS)
                self.fail(f"{item!r} is not NAME=PATH with one of these names: {names}", param, ctx)
            found[key] = path
        return found


@click.command(
    epilog=examples(
        "# Check one VM",
        "hotnic doctor vm1",
        "# Check the VMs of all namespaces and print JSON",
        "hotnic doctor --all-namespaces -o json",
        "# Check the lab's VMs and its node",
        "hotnic lab exec hotnic doctor",
        "# Show what --fix would remove, then remove it",
        "hotnic doctor --all-namespaces --fix --dry-run",
        "hotnic doctor --all-namespaces --fix",
        "# As root on a node without hotnic, remove the records and leases that are left there",
        "hotnic doctor --all-namespaces --fix --node node1 --kubeconfig admin.conf",
    )
)
@click.argument("vm", metavar="[VM]", required=False)
@click.option("--fix", is_flag=True, help="Remove what is left over and not in use, then check again.")
@click.option("--dry-run", is_flag=True, help="With --fix: let the API server check each patch, and change nothing.")
@click.option("-A", "--all-namespaces", is_flag=True, help="Check the VMs of all namespaces.")
@click.option(
    "-o", "--output", type=click.Choice(["json", "text"]), default="text", show_default=True, help="Output format."
)
@click.option(
    "--node",
    metavar="NAME",
    envvar="HOTNIC_NODE_NAME",
    help="Name of the node that the command runs on (default: HOTNIC_NODE_NAME, else derived from the node's pods).",
)
@click.option(
    "--node-paths",
    type=NodePathsType(),
    metavar="NAME=PATH,…",
    default={},
    help=(
        "Paths of cri-socket, cni-state-dir, socket-dir, qmp-socket, host-root and host-process (default: as in the "
        "roles' settings)."
    ),
)
@click.option(
    "--guest-driver",
    type=click.Choice(["auto", "qmp", "libvirt"]),
    envvar="HOTNIC_GUEST_DRIVER",
    default="auto",
    help="Connection to the guests (default: HOTNIC_GUEST_DRIVER, else selected as the handler does).",
)
@bus_option
@click.option(
    "--nats-monitoring-url",
    metavar="URL",
    envvar="NATS_MONITORING_URL",
    help="Address of the NATS server's monitoring endpoint, to check its store (default: NATS_MONITORING_URL).",
)
@cluster_options
def doctor(
    vm: str | None,
    fix: bool,
    dry_run: bool,
    all_namespaces: bool,
    output: str,
    node: str | None,
    node_paths: dict[str, str],
    guest_driver: str,
    nats_url: str | None,
    nats_monitoring_url: str | None,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> int:
    """Check the network interfaces of VMs for inconsistencies and print how to repair each finding.

    Checks one running VM, or all VMs of the namespace. Run as root on a node to check its links, records, leases and
    guest devices, too; set --nats-url or NATS_URL to check the streams of the bus. The exit code is 1 if there are
    findings.

    --fix removes what is left over without asking, with the rights of your kubeconfig: annotations and elements that
    belong to no interface, and as root on a node links, records and leases. It leaves alone what may be in use, what
    has just begun, and what changes meanwhile. The exit code is then 1 if a finding is left.
    """
    if vm is not None and all_namespaces:
        raise click.UsageError("specify either a VM or --all-namespaces")
    if dry_run and not fix:
        raise click.UsageError("--dry-run needs --fix")
    paths = _paths(node_paths | {"guest_driver": guest_driver})
    bus = (nats_url, nats_monitoring_url) if nats_url else None
    target = ClusterTarget(namespace, context, kubeconfig)

    async def work(kube: Kube, default: str) -> DoctorReport:
        return await _examine(kube, None if all_namespaces else default, vm, paths, node, bus)

    async def fix_all(kube: Kube, default: str) -> FixReport:
        say(cluster_message(kube), err=True)
        return await _fix(kube, lambda: work(kube, default), paths, dry_run=dry_run, quiet=output == "json")

    if fix:
        fixed: FixReport = run_with_cluster(target, fix_all, span="hotnic doctor")
        _print(fixed.remaining, output, document=fixed)
        return 0 if fixed.complete else 1
    report: DoctorReport = run_with_cluster(target, work)
    _print(report, output, document=report)
    return 1 if report.findings else 0


def _print(report: DoctorReport | None, output: str, *, document: DoctorReport | FixReport) -> None:
    """Print the report, or the document as JSON."""
    if output == "json":
        say_json(document)
    elif report is not None:
        say(*report_lines(report))


async def _fix(
    kube: Kube, examine: Callable[[], Awaitable[DoctorReport]], paths: NodeSettings, *, dry_run: bool, quiet: bool
) -> FixReport:
    """Examine, print each finding and each change, and return the result.

    :param quiet: print nothing.
    """
    import time

    from services.cli.doctor.fix.apply import StepApplier
    from services.cli.doctor.fix.rounds import change_line, fix_findings

    def on_change(made: MadeChange) -> None:
        if not quiet:
            say(change_line(made))

    report = await examine()
    if not quiet:
        # The findings that are left are printed again at the end, with their repairs.
        say(*(report_lines(report) if dry_run else map(finding_line, report.findings)))
    applier = StepApplier(kube, paths, dry_run=dry_run)
    return await fix_findings(
        report, examine=examine, apply=applier.apply, clock=time.time, say=on_change, dry_run=dry_run
    )


async def _examine(
    kube: Kube,
    namespace: str | None,
    vm: str | None,
    paths: NodeSettings,
    node: str | None,
    bus: tuple[str, str | None] | None,
) -> DoctorReport:
    """Examine twice if there are findings; return those that both have.

    :param bus: addresses of NATS and of its monitoring endpoint.
    """
    import asyncio

    import msgspec

    from services.cli.doctor.collect.objects import snapshot_of_vm, snapshot_of_vms
    from services.cli.doctor.examine import confirmed, examine

    async def examine_once() -> DoctorReport:
        if vm is not None and namespace is not None:
            return examine(await snapshot_of_vm(kube, namespace, vm, paths, node, for_fixes=True), node=False)
        found = await snapshot_of_vms(kube, namespace, paths, node, for_fixes=True)
        if bus is not None:
            from services.cli.doctor.collect.bus import read_bus

            found = msgspec.structs.replace(found, bus=await read_bus(*bus))
        return examine(found)

    report = await examine_once()
    if report.findings:
        await asyncio.sleep(CONFIRMATION_DELAY)
        report = confirmed(report, await examine_once())
    return report


def _paths(chosen: dict[str, str]) -> NodeSettings:
    import msgspec

    from services.cli.doctor.collect.node_files import NodeSettings

    found = {name: os.environ[variable] for name, variable in _SETTINGS.items() if os.environ.get(variable)}
    return msgspec.convert(found | chosen, NodeSettings)


def finding_line(finding: Finding) -> str:
    """Return a finding as text, without its repair."""
    return f"{finding.subject}: {finding.code}: {finding.message}"


def report_lines(report: DoctorReport) -> list[str]:
    """Return the report as text."""
    lines = []
    for finding in report.findings:
        lines += [finding_line(finding), f"    repair: {finding.repair}"]
        if finding.fix is not None:
            lines.append("    fix: hotnic doctor --fix removes it")
    for operation in report.in_progress:
        reason = f" ({operation.reason})" if operation.reason else ""
        since = operation.since or UNKNOWN
        lines.append(f"{operation.subject}: in progress since {since}: {operation.message}{reason}")
    lines += [f"{one.subject}: not checked: {one.part}: {one.message}" for one in report.not_checked]
    count = len(report.findings)
    findings = "no findings" if not count else "1 finding" if count == 1 else f"{count} findings"
    nics = "1 network interface" if report.checked_nics == 1 else f"{report.checked_nics} network interfaces"
    return [*lines, f"{findings}; {nics} checked"]
