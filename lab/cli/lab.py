"""``hotnic lab``: the development cluster on one machine. Each verb calls a function of `lab.cli.commands`.

`--dir` or `HOTNIC_LAB_DIR` selects the lab's directory; the default is `.lab` in the working directory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from services.cli.output import Duration, examples

if TYPE_CHECKING:
    from lab.layout import GuestKind

MAX_NODES = 9

F = TypeVar("F", bound=Callable[..., Any])


def _directory(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Path:
    from lab.layout import lab_dir

    return lab_dir(value)


def _kubevirt_version(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    from lab.kubevirt.versions import UnknownVersionError, behaviour_of

    if value is not None:
        try:
            behaviour_of(value)
        except UnknownVersionError as error:
            raise click.BadParameter(str(error)) from error
    return value


def dir_option(command: F) -> F:
    """Add ``--dir``."""
    return click.option(
        "--dir",
        "directory",
        metavar="DIR",
        callback=_directory,
        help="Directory of the lab (default: HOTNIC_LAB_DIR, else .lab).",
    )(command)


@click.group()
def lab() -> None:
    """Run a cluster on this machine for development.

    It runs NATS, containerd, CNI plugins and QEMU guests, or a program that plays KubeVirt. It requires root.
    """


@lab.command(
    epilog=examples(
        "hotnic lab up",
        "# Start a second lab and leave out a role, to run it by hand",
        "hotnic lab up --dir second --without handler",
        "# Use Kubernetes itself, built on this machine with Go",
        "hotnic lab up --kubernetes 1.36",
        "# Run the pods with a kubelet on containerd 2 as well",
        "hotnic lab up --kubernetes 1.36 --kubelet",
        "# Run hotnic beside a program that plays KubeVirt 1.9",
        "hotnic lab up --kubevirt 1.9",
        "# The same on Kubernetes itself, with webhooks that play KubeVirt's admission",
        "hotnic lab up --kubevirt 1.9 --kubernetes 1.36",
        "# Run three nodes, whose networks are joined",
        "hotnic lab up --nodes 3",
        "# Send all traces to a collector, such as Jaeger, on this machine",
        "hotnic lab up --otlp http://127.0.0.1:4318",
    )
)
@click.option("--bare", is_flag=True, help="Do not create the sample network and VM.")
@click.option("--without", multiple=True, metavar="ROLE", help="Do not start this role (repeatable).")
@click.option(
    "--guests",
    type=click.Choice(["qemu", "double"]),
    default="qemu",
    show_default=True,
    help="QEMU guests, or test doubles that start at once and have no kernel.",
)
@click.option(
    "--kubernetes",
    type=click.Choice(["1.30", "1.36"]),
    help="Use Kubernetes itself of this version, with RBAC, instead of the lab's own API server (built with Go).",
)
@click.option(
    "--kubelet",
    is_flag=True,
    help="With --kubernetes 1.36: run the pods with kubelet, kube-scheduler and containerd 2 (built with Go).",
)
@click.option(
    "--kubevirt",
    metavar="VERSION",
    callback=_kubevirt_version,
    help="Run hotnic beside a program that plays KubeVirt of this version, 1.0 to 1.9. Pods and networks are real, and "
    "guests are only objects, without QEMU.",
)
@click.option(
    "--nodes",
    type=click.IntRange(1, MAX_NODES),
    default=1,
    show_default=True,
    help="Number of nodes, each with namespaces, a containerd and node roles of its own; from two on there are two "
    "controllers.",
)
@click.option(
    "--otlp",
    metavar="URL",
    help="Export traces to this collector too: http://HOST:4318 or grpc://HOST:4317.",
)
@click.option(
    "--timeout", type=Duration(), default="2m", show_default=True, help="The length of time to wait for the start."
)
@dir_option
def up(
    bare: bool,
    without: tuple[str, ...],
    guests: GuestKind,
    kubernetes: str | None,
    kubelet: bool,
    kubevirt: str | None,
    nodes: int,
    otlp: str | None,
    timeout: float,
    directory: Path,
) -> int:
    """Start the lab and wait until it is ready."""
    # Imported in each command, so that help texts appear at once.
    from lab.cli import commands

    if kubelet and kubernetes != "1.36":
        raise click.UsageError("--kubelet needs --kubernetes 1.36")
    if kubevirt and guests != "qemu":
        raise click.UsageError("--guests has no effect with --kubevirt, which plays the guests: leave it out")
    for option, chosen in (("--kubelet", kubelet), ("--kubevirt", kubevirt)):
        if chosen and nodes > 1:
            raise click.UsageError(f"{option} works with one node only: leave out --nodes")
    options = commands.UpOptions(directory, bare, without, timeout, guests, kubernetes, kubelet, kubevirt, otlp, nodes)
    return commands.up(options)


@lab.command(epilog=examples("hotnic lab down"))
@dir_option
def down(directory: Path) -> int:
    """Stop the lab and remove everything except its logs and traces."""
    from lab.cli import commands

    return commands.down(directory)


@lab.command(epilog=examples("hotnic lab status", "hotnic lab status -o json"))
@click.option("-o", "--output", type=click.Choice(["json"]), help="Print JSON.")
@dir_option
def status(output: str | None, directory: Path) -> int:
    """Show the lab's processes and VMs; the exit code is 1 if something does not run."""
    from lab.cli import commands

    return commands.status(directory, as_json=output == "json")


@lab.command(epilog=examples("hotnic lab console centos-stream9-1"))
@click.argument("vm", metavar="VM")
@click.option("-n", "--namespace", default="default", show_default=True, help="Namespace of the VM.")
@dir_option
def console(vm: str, namespace: str, directory: Path) -> int:
    """Attach to a guest's serial console; press Ctrl-] to detach."""
    from lab.cli import commands

    return commands.console(directory, vm, namespace=namespace)


@lab.command(epilog=examples('export KUBECONFIG="$(hotnic lab kubeconfig)"'))
@dir_option
def kubeconfig(directory: Path) -> int:
    """Print the path of the lab's kubeconfig."""
    from lab.cli import commands

    return commands.kubeconfig(directory)


@lab.command(
    "exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog=examples("hotnic lab exec ip -brief link", "hotnic lab exec --node lab-2 hotnic doctor"),
)
@click.option("--node", default="lab", show_default=True, help="Run it on this node.")
@dir_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(node: str, directory: Path, command: tuple[str, ...]) -> int:
    """Run a command inside a node's namespaces, by default the first one's."""
    from lab.cli import commands

    return commands.exec_(directory, command, node=node)


@lab.command(epilog=examples("hotnic lab logs handler -f", "hotnic lab logs handler-2"))
@click.argument("component")
@click.option("-f", "--follow", is_flag=True, help="Print new lines as they are written, until interrupted.")
@dir_option
def logs(component: str, follow: bool, directory: Path) -> int:
    """Print the log of one of the lab's processes."""
    from lab.cli import commands

    return commands.logs(directory, component, follow=follow)


@lab.command(epilog=examples("hotnic lab restart handler"))
@click.argument("component")
@dir_option
def restart(component: str, directory: Path) -> int:
    """Restart one of the lab's processes."""
    from lab.cli import commands

    return commands.restart(directory, component)
