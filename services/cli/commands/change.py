"""``hotnic addinterface`` and ``hotnic removeinterface``: plug and unplug a network interface.

Next: :mod:`services.cli.operations.request`, the request and its operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from services.cli.cluster import ClusterTarget, cluster_options, run_with_cluster
from services.cli.errors import INTERRUPTED
from services.cli.operations.request import ChangeRequest, Verb
from services.cli.output import Duration, examples, say, say_json

F = TypeVar("F", bound=Callable[..., Any])


def change_options(until: str) -> Callable[[F], F]:
    """Return a decorator that adds the options shared by addinterface and removeinterface.

    :param until: the condition that ``--wait`` waits for, for its help text.
    """

    def add(command: F) -> F:
        for option in (
            click.option("-o", "--output", type=click.Choice(["json"]), help="Print the result as JSON."),
            click.option(
                "--timeout",
                type=Duration(),
                default="2m",
                show_default=True,
                help="The length of time to wait with --wait.",
            ),
            click.option("--wait", is_flag=True, help=f"Show each stage and wait until {until}."),
            click.option(
                "--allow-eviction",
                is_flag=True,
                help="Beside KubeVirt: change the VM even if KubeVirt will shut it down for that.",
            ),
            click.option(
                "--dry-run", is_flag=True, help="Change nothing; show whether it is possible, and what it will cause."
            ),
            click.option(
                "--persist",
                is_flag=True,
                help="Change the VM's template; the change is applied to the running VM, too. Implied beside KubeVirt.",
            ),
        ):
            command = option(command)
        return command

    return add


@click.command(
    epilog=examples(
        "# Plug an interface; beside KubeVirt permanently, otherwise until the VM restarts",
        "hotnic addinterface vm1 --name blue --network-attachment-definition-name blue-net",
        "# Plug an interface permanently, with a NAD of another namespace, and wait until the guest has it",
        "hotnic addinterface vm1 --name blue --network-attachment-definition-name infra/blue-net --persist --wait",
        "# Show what KubeVirt will do to the VM for it, such as a migration, and change nothing",
        "hotnic addinterface vm1 --name blue --network-attachment-definition-name blue-net --dry-run",
    )
)
@click.argument("vm", metavar="VM")
@click.option("--name", required=True, metavar="NAME", help="Name of the new interface, unique in the VM.")
@click.option(
    "--network-attachment-definition-name",
    "nad",
    required=True,
    metavar="[NAMESPACE/]NAD",
    help="NetworkAttachmentDefinition of the network to attach to.",
)
@change_options("the guest has the NIC")
@cluster_options
def addinterface(
    vm: str,
    name: str,
    nad: str,
    persist: bool,
    dry_run: bool,
    allow_eviction: bool,
    wait: bool,
    timeout: float,
    output: str | None,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> int:
    """Plug a network interface into the running VM.

    Without --persist the interface is lost when the VM restarts. Beside KubeVirt --persist is implied, and you
    need the permission to update the VM.
    """
    # The body of KubeVirt's subresource.
    body = {"networkAttachmentDefinitionName": nad, "name": name}
    change = ChangeRequest(
        Verb.ADD,
        vm,
        name,
        body,
        persist=persist,
        timeout=timeout if wait else None,
        dry_run=dry_run,
        allow_eviction=allow_eviction,
    )
    return perform(change, ClusterTarget(namespace, context, kubeconfig), output)


@click.command(
    epilog=examples(
        "# Unplug an interface; beside KubeVirt permanently, otherwise from the running VM only",
        "hotnic removeinterface vm1 --name blue",
        "# Unplug an interface permanently and wait until it is removed",
        "hotnic removeinterface vm1 --name blue --persist --wait --timeout 5m",
        "# Show whether the interface can be unplugged, and change nothing",
        "hotnic removeinterface vm1 --name blue --dry-run",
    )
)
@click.argument("vm", metavar="VM")
@click.option("--name", required=True, metavar="NAME", help="Name of the interface.")
@change_options("the guest has released the NIC and the interface is removed")
@cluster_options
def removeinterface(
    vm: str,
    name: str,
    persist: bool,
    dry_run: bool,
    allow_eviction: bool,
    wait: bool,
    timeout: float,
    output: str | None,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> int:
    """Unplug a network interface from the running VM.

    Without --persist an interface of the VM's template is plugged again when the VM restarts. Beside KubeVirt --persist
    is implied, and you need the permission to update the VM.
    """
    change = ChangeRequest(
        Verb.REMOVE,
        vm,
        name,
        {"name": name},
        persist=persist,
        timeout=timeout if wait else None,
        dry_run=dry_run,
        allow_eviction=allow_eviction,
    )
    return perform(change, ClusterTarget(namespace, context, kubeconfig), output)


def perform(change: ChangeRequest, target: ClusterTarget, output: str | None) -> int:
    """Send a request, print its result and return the exit code.

    :raises CliError: the request or its operation failed, or has not completed in time.
    """
    try:
        run_with_cluster(target, change.run, span=f"hotnic {change.verb}")
    except KeyboardInterrupt:
        # The request has not been answered, so it is unknown whether there is an operation.
        if change.operation is None:
            raise
        say("", f"the operation continues; to follow it, run: {change.status_command}", err=True)
        return INTERRUPTED
    from services.cli.operations.outcome import document, error_of, success_message

    error = error_of(change)
    if output == "json":
        say_json(document(change))
    elif error is None:
        say(success_message(change))
    if error is not None:
        raise error
    return 0
