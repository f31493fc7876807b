"""``hotnic chart``: the commands that the Helm chart's hooks run in the cluster; nobody types them.

Next: :mod:`services.cli.chart.uninstall` and :mod:`services.cli.chart.attachment`, which carry them out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from services.cli.cluster import ClusterTarget, run_with_cluster
from services.cli.errors import CommandFailed
from services.cli.output import Duration, examples, say

if TYPE_CHECKING:
    from services.common.kube.client import Kube


@click.group()
def chart() -> None:
    """Run a hook of the Helm chart, inside the cluster."""


@chart.command(
    epilog=examples("hotnic chart uninstall --namespace hotnic --daemonset hotnic-multus --pod pod.json --timeout 2m")
)
@click.option("-n", "--namespace", required=True, metavar="NAME", help="Namespace of the release.")
@click.option("--api-service", "api_services", multiple=True, metavar="NAME", help="APIService to delete first.")
@click.option("--daemonset", required=True, metavar="NAME", help="DaemonSet of the multus daemons, deleted next.")
@click.option("--node-label", "labels", multiple=True, metavar="KEY=VALUE", help="Label of the nodes to clean.")
@click.option("--pod", type=click.Path(path_type=Path), required=True, help="JSON file: the pod that cleans a node.")
@click.option("--timeout", type=Duration(), default="2m", show_default=True, help="Deadline for all nodes.")
def uninstall(
    namespace: str, api_services: tuple[str, ...], daemonset: str, labels: tuple[str, ...], pod: Path, timeout: float
) -> None:
    """Remove the aggregated APIs, the multus daemons and their files on every node, before a release is deleted.

    Nodes that are not reached or not clean are listed; they do not make the command fail, because the release goes in
    any case.
    """
    import msgspec

    from services.cli.chart.uninstall import Uninstall

    try:
        template = msgspec.json.decode(pod.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise CommandFailed(f"cannot read the pod of {pod}: {error}") from error
    target = ClusterTarget(namespace, None, None)

    async def work(kube: Kube, _namespace: str) -> None:
        run = Uninstall(kube, namespace, template, say=say)
        await run.remove(api_services, daemonset)
        await run.clean_nodes(",".join(labels), timeout)

    run_with_cluster(target, work)


@chart.command(epilog=examples("hotnic chart test --namespace hotnic --pod hotnic-test --network hotnic-test"))
@click.option("-n", "--namespace", required=True, metavar="NAME", help="Namespace of the pod.")
@click.option("--pod", required=True, metavar="NAME", help="The pod in which the command runs.")
@click.option("--network", required=True, metavar="NAME", help="The network to attach.")
@click.option("--interface", default="hotnictest0", show_default=True, metavar="NAME", help="The pod interface.")
@click.option("--attached", is_flag=True, help="Only check that the interface is there: the pod requested it itself.")
@click.option("--api", "apis", multiple=True, metavar="GROUP/VERSION", help="Aggregated API that must be served.")
@click.option("--timeout", type=Duration(), default="1m", show_default=True, help="Deadline of each step.")
def test(
    namespace: str, pod: str, network: str, interface: str, attached: bool, apis: tuple[str, ...], timeout: float
) -> None:
    """Attach this pod to a network and detach it, and check that the aggregated APIs are served."""
    from services.cli.chart.attachment import check_apis, check_attachment

    async def work(kube: Kube, _namespace: str) -> None:
        await check_apis(kube, apis, timeout, say=say)
        await check_attachment(
            kube,
            (namespace, pod),
            network,
            interface,
            attached=attached,
            timeout=timeout,
            say=say,
        )

    run_with_cluster(ClusterTarget(namespace, None, None), work)
