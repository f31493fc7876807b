"""``hotnic doctor``: whether everything that speaks of the NICs of VMs says the same, and what repairs it where not.

From the API server alone it compares objects; as root of a node also the links, records, leases and guests there.
A disagreement counts when two looks have seen it. The checks are :mod:`services.common.domain.invariants`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from services.cli.cluster import Where, call, cluster_options
from services.cli.examples import examples
from services.cli.output import UNKNOWN, as_json

if TYPE_CHECKING:
    from services.cli.node_files import Paths
    from services.common.domain.invariants.world import DoctorReport
    from services.common.kube.client import Kube

BETWEEN_LOOKS = 1.0
"""Seconds; what is being changed has changed by then."""

_SETTINGS = {
    "cri_socket": "HOTNIC_CRI_SOCKET",
    "cni_state_dir": "HOTNIC_CNI_STATE_DIR",
    "qmp_socket": "HOTNIC_QMP_SOCKET",
    "host_root": "HOTNIC_HOST_ROOT",
}


class NodePaths(click.ParamType[dict[str, str]]):
    """``NAME=PATH[,NAME=PATH…]``; the value is by name."""

    name = "node-paths"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        """Parse it."""
        if isinstance(value, dict):
            return value
        found = {}
        for item in str(value).split(","):
            key, equals, path = item.partition("=")
            key = key.strip().replace("-", "_")
            if key not in _SETTINGS or not equals or not path:
                names = ", ".join(name.replace("_", "-") for name in _SETTINGS)
                self.fail(f"{item!r} is not of the form NAME=PATH with one of these names: {names}", param, ctx)
            found[key] = path
        return found


@click.command(
    epilog=examples(
        "hotnic doctor vm1",
        "# everything, for a script",
        "hotnic doctor --all-namespaces -o json",
        "# in the lab, with the links, leases and guests of its node",
        "hotnic lab exec hotnic doctor",
    )
)
@click.argument("vm", metavar="[VM]", required=False)
@click.option("-A", "--all-namespaces", is_flag=True, help="The VMs of all namespaces.")
@click.option("-o", "--output", type=click.Choice(["json", "text"]), default="text", show_default=True)
@click.option(
    "--node",
    metavar="NAME",
    envvar="HOTNIC_NODE_NAME",
    help="The node this runs on (HOTNIC_NODE_NAME; default: told by its pods).",
)
@click.option(
    "--node-paths",
    type=NodePaths(),
    metavar="NAME=PATH,…",
    default={},
    help="Where cri-socket, cni-state-dir, qmp-socket or host-root are (default: as the services' settings say).",
)
@click.option(
    "--guest-driver",
    type=click.Choice(["auto", "qmp", "libvirt"]),
    envvar="HOTNIC_GUEST_DRIVER",
    default="auto",
    help="How guests are asked (HOTNIC_GUEST_DRIVER; default: as the handler does it).",
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
    """Check that everything which speaks of the network cards of VMs agrees; name what does not, and its repair.

    One running VM, or all of the namespace. Run as root on a node, it also looks at the links, records, leases
    and guests there. Exit code 1: something disagrees.
    """
    if vm is not None and all_namespaces:
        raise click.UsageError("name one VM, or all with --all-namespaces")

    async def work(kube: Kube, default: str) -> DoctorReport:
        return await _examine(
            kube, None if all_namespaces else default, vm, _paths(node_paths | {"guest_driver": guest_driver}), node
        )

    report: DoctorReport = call(Where(namespace, context, kubeconfig), work)
    if output == "json":
        click.echo(as_json(report))
    else:
        for line in lines(report):
            click.echo(line)
    return 1 if report.disagreements else 0


async def _examine(kube: Kube, namespace: str | None, vm: str | None, paths: Paths, node: str | None) -> DoctorReport:
    import asyncio

    from services.cli.collect import many, one
    from services.common.domain.invariants import confirmed, examine

    async def look() -> DoctorReport:
        if vm is not None and namespace is not None:
            return examine(await one(kube, namespace, vm, paths, node), node=False)
        return examine(await many(kube, namespace, paths, node))

    report = await look()
    if report.disagreements:
        await asyncio.sleep(BETWEEN_LOOKS)
        report = confirmed(report, await look())
    return report


def _paths(chosen: dict[str, str]) -> Paths:
    import msgspec

    from services.cli.node_files import Paths

    found = {name: os.environ[variable] for name, variable in _SETTINGS.items() if os.environ.get(variable)}
    return msgspec.convert(found | chosen, Paths)


def lines(report: DoctorReport) -> list[str]:
    """The report for people."""
    said = []
    for one in report.disagreements:
        said += [f"{one.subject}: {one.code}: {one.what}", f"    repair: {one.repair}"]
    for busy in report.in_progress:
        reason = f" ({busy.reason})" if busy.reason else ""
        said.append(f"{busy.subject}: in progress since {busy.since or UNKNOWN}: {busy.what}{reason}")
    said += [f"{part.subject}: not looked at: {part.part}: {part.why}" for part in report.not_seen]
    count = len(report.disagreements)
    found = "no disagreement" if not count else "1 disagreement" if count == 1 else f"{count} disagreements"
    cards = "1 network card" if report.looked_at == 1 else f"{report.looked_at} network cards"
    return [*said, f"{found}; {cards} compared"]
