"""``hotnic removeinterface``: unplugs a network card; what it shares with plugging is :mod:`services.cli.change`."""

from __future__ import annotations

import click

from services.cli.change import Change, Verb, change_options, perform
from services.cli.cluster import Where, cluster_options
from services.cli.examples import examples


@click.command(
    epilog=examples(
        "# from the running VM",
        "hotnic removeinterface vm1 --name blue",
        "# for good, waiting until nothing is left of it",
        "hotnic removeinterface vm1 --name blue --persist --wait --timeout 5m",
    )
)
@click.argument("vm", metavar="VM")
@click.option("--name", required=True, metavar="NAME", help="Name of the interface.")
@change_options("until the guest has let go of the card and nothing is left of it")
@cluster_options
def removeinterface(
    vm: str,
    name: str,
    persist: bool,
    wait: bool,
    timeout: float,
    output: str | None,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> int:
    """Unplug a network card from the running VM.

    Without --persist the card is back when the VM is restarted, if the VM's template has it.
    """
    change = Change(Verb.REMOVE, vm, name, {"name": name}, persist=persist, timeout=timeout if wait else None)
    return perform(change, Where(namespace, context, kubeconfig), output)
