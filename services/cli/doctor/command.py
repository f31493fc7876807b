"""``hotnic doctor``: checks the network interfaces of VMs for inconsistencies and prints how to repair each finding.

With the API server alone it compares objects. As root on a node it also compares the links, records, leases and guest
devices there. A finding is reported if two snapshots have it. The checks: :mod:`services.cli.doctor.checks`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from services.cli.cluster import ClusterTarget, cluster_options, run_with_cluster
from services.cli.output import UNKNOWN, as_json, examples

if TYPE_CHECKING:
    from services.cli.doctor.collect.node_files import NodeSettings
    from services.cli.doctor.snapshot import DoctorReport
    from services.common.kube.client import Kube

CONFIRMATION_DELAY = 1.0
"""Seconds between two snapshots; a change that the first one shows half-done has completed by the second."""

_SETTINGS = {
    "cri_socket": "HOTNIC_CRI_SOCKET",
    "cni_state_dir": "HOTNIC_CNI_STATE_DIR",
    "socket_dir": "HOTNIC_SOCKET_DIR",
    "qmp_socket": "HOTNIC_QMP_SOCKET",
    "host_root": "HOTNIC_HOST_ROOT",
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
    )
)
@click.argument("vm", metavar="[VM]", required=False)
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
        "Paths of cri-socket, cni-state-dir, socket-dir, qmp-socket and host-root (default: as in the roles' settings)."
    ),
)
@click.option(
    "--guest-driver",
    type=click.Choice(["auto", "qmp", "libvirt"]),
    envvar="HOTNIC_GUEST_DRIVER",
    default="auto",
    help="Connection to the guests (default: HOTNIC_GUEST_DRIVER, else selected as the handler does).",
)
@cluster_options
def doctor(
    vm: str | None,
    all_namespaces: bool,
    output: str,
    node: str | None,
    node_paths: dict[str, str],
    guest_driver: str,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> int:
    """Check the network interfaces of VMs for inconsistencies and print how to repair each finding.

    Checks one running VM, or all VMs of the namespace. Run as root on a node to check its links, records, leases and
    guest devices, too. The exit code is 1 if there are findings.
    """
    if vm is not None and all_namespaces:
        raise click.UsageError("specify either a VM or --all-namespaces")

    async def work(kube: Kube, default: str) -> DoctorReport:
        return await _examine(
            kube, None if all_namespaces else default, vm, _paths(node_paths | {"guest_driver": guest_driver}), node
        )

    report: DoctorReport = run_with_cluster(ClusterTarget(namespace, context, kubeconfig), work)
    if output == "json":
        click.echo(as_json(report))
    else:
        for line in report_lines(report):
            click.echo(line)
    return 1 if report.findings else 0


async def _examine(
    kube: Kube, namespace: str | None, vm: str | None, paths: NodeSettings, node: str | None
) -> DoctorReport:
    import asyncio

    from services.cli.doctor.collect.objects import snapshot_of_vm, snapshot_of_vms
    from services.cli.doctor.examine import confirmed, examine

    async def examine_once() -> DoctorReport:
        if vm is not None and namespace is not None:
            return examine(await snapshot_of_vm(kube, namespace, vm, paths, node), node=False)
        return examine(await snapshot_of_vms(kube, namespace, paths, node))

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


def report_lines(report: DoctorReport) -> list[str]:
    """Return the report as text."""
    lines = []
    for finding in report.findings:
        lines += [f"{finding.subject}: {finding.code}: {finding.message}", f"    repair: {finding.repair}"]
    for operation in report.in_progress:
        reason = f" ({operation.reason})" if operation.reason else ""
        since = operation.since or UNKNOWN
        lines.append(f"{operation.subject}: in progress since {since}: {operation.message}{reason}")
    lines += [f"{one.subject}: not checked: {one.part}: {one.message}" for one in report.not_checked]
    count = len(report.findings)
    findings = "no findings" if not count else "1 finding" if count == 1 else f"{count} findings"
    nics = "1 network interface" if report.checked_nics == 1 else f"{report.checked_nics} network interfaces"
    return [*lines, f"{findings}; {nics} checked"]
