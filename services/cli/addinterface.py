"""``hotnic addinterface``: plugs a network card. What it shares with its counterpart is :mod:`services.cli.change`."""

from __future__ import annotations

import click

from services.cli.change import Change, Verb, change_options, perform
from services.cli.cluster import Where, cluster_options
from services.cli.examples import examples


@click.command(
    epilog=examples(
        "# until the VM is restarted",
        "hotnic addinterface vm1 --name blue --network-attachment-definition-name blue-net",
        "# for good, from another namespace's network, waiting until the guest has it",
        "hotnic addinterface vm1 --name blue --network-attachment-definition-name infra/blue-net --persist --wait",
    )
)
@click.argument("vm", metavar="VM")
@click.option("--name", required=True, metavar="NAME", help="Name of the new interface, unique in the VM.")
@click.option(
    "--network-attachment-definition-name",
    "nad",
    required=True,
    metavar="[NAMESPACE/]NAD",
    help="The network to attach it to.",
)
@change_options("until the guest has the card")
@cluster_options
def addinterface(
    vm: str,
    name: str,
    nad: str,
    persist: bool,
    wait: bool,
    timeout: float,
    output: str | None,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> int:
    """Plug a network card into the running VM.

    Without --persist the card is lost when the VM is restarted.
    """
    body = {"networkAttachmentDefinitionName": nad, "name": name}
    change = Change(Verb.ADD, vm, name, body, persist=persist, timeout=timeout if wait else None)
    return perform(change, Where(namespace, context, kubeconfig), output)
