"""``hotnic lab …``: the one-machine cluster for development. Every verb is a function of `services.lab.commands`.

`--dir` or `HOTNIC_LAB_DIR` chooses the lab, `.lab` in the working directory otherwise.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from services.cli.examples import examples
from services.cli.output import Duration

if TYPE_CHECKING:
    from services.lab.layout import Guests

F = TypeVar("F", bound=Callable[..., Any])


def _directory(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Path:
    from services.lab.layout import lab_dir

    return lab_dir(value)


def in_directory(command: F) -> F:
    """Add ``--dir``."""
    return click.option(
        "--dir", "directory", metavar="DIR", callback=_directory, help="The lab's directory (HOTNIC_LAB_DIR, .lab)."
    )(command)


@click.group()
def lab() -> None:
    """Run a one-machine cluster for development: real NATS, containerd, CNI plugins and QEMU guests (root)."""


@lab.command(
    epilog=examples(
        "hotnic lab up",
        "# two labs side by side; one of them with a role run by hand",
        "hotnic lab up --dir second --without handler",
    )
)
@click.option("--bare", is_flag=True, help="Without the sample network and VM.")
@click.option("--without", multiple=True, metavar="ROLE", help="Leave a service out, to be run by hand (repeatable).")
@click.option(
    "--guests",
    type=click.Choice(["qemu", "double"]),
    default="qemu",
    show_default=True,
    help="Machines, or stand-ins that start at once and have no kernel.",
)
@click.option("--timeout", type=Duration(), default="2m", show_default=True, help="How long the start may take.")
@in_directory
def up(bare: bool, without: tuple[str, ...], guests: Guests, timeout: float, directory: Path) -> int:
    """Start the lab; returns when it is ready."""
    if importlib.util.find_spec("cryptography") is None:
        raise click.ClickException("the lab's packages are missing: pip install 'hotnic[lab]'")
    from services.lab import commands

    options = commands.UpOptions(dir=directory, bare=bare, without=without, timeout=timeout, guests=guests)
    return commands.up(options)


@lab.command(epilog=examples("hotnic lab down"))
@in_directory
def down(directory: Path) -> int:
    """Stop the lab; only logs and traces are left."""
    from services.lab import commands

    return commands.down(directory)


@lab.command(epilog=examples("hotnic lab status", "hotnic lab status -o json"))
@click.option("-o", "--output", type=click.Choice(["json"]), help="JSON.")
@in_directory
def status(output: str | None, directory: Path) -> int:
    """Show what runs; exit code 1 when something does not."""
    from services.lab import commands

    return commands.status(directory, as_json=output == "json")


@lab.command(epilog=examples("hotnic lab console centos-stream9-1"))
@click.argument("vm", metavar="VM")
@click.option("-n", "--namespace", default="default", show_default=True)
@in_directory
def console(vm: str, namespace: str, directory: Path) -> int:
    """Attach to a guest's serial console; Ctrl-] leaves it."""
    from services.lab import commands

    return commands.console(directory, vm, namespace=namespace)


@lab.command(epilog=examples('export KUBECONFIG="$(hotnic lab kubeconfig)"'))
@in_directory
def kubeconfig(directory: Path) -> int:
    """Print the path of the lab's kubeconfig."""
    from services.lab import commands

    return commands.kubeconfig(directory)


@lab.command(
    "exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog=examples("hotnic lab exec ip -brief link", "hotnic lab exec hotnic doctor"),
)
@in_directory
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(directory: Path, command: tuple[str, ...]) -> int:
    """Run a command inside the lab, such as: ip link."""
    from services.lab import commands

    return commands.exec_(directory, command)


@lab.command(epilog=examples("hotnic lab logs handler -f"))
@click.argument("component")
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows.")
@in_directory
def logs(component: str, follow: bool, directory: Path) -> int:
    """Print the log of one of the lab's processes."""
    from services.lab import commands

    return commands.logs(directory, component, follow=follow)


@lab.command(epilog=examples("hotnic lab restart handler"))
@click.argument("component")
@in_directory
def restart(component: str, directory: Path) -> int:
    """Restart one of the lab's processes."""
    from services.lab import commands

    return commands.restart(directory, component)
