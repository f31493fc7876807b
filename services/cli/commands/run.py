"""``hotnic run ROLE``: runs one of hotnic's roles in this process; the same as ``python -m services.ROLE``.

A role is configured by environment variables; its own ``--help`` lists them.
"""

import importlib

import click

from services.cli.output import examples

ROLES = {
    "api": "aggregated API server for addinterface and removeinterface",
    "controller": "writes the attachments of a VM's spec to its pod",
    "networks": "attaches pods to networks (one per node)",
    "multus": "CNI meta-plugin daemon (one per node)",
    "handler": "plugs NICs into guests (one per node)",
}
"""One line about each role, for the help text."""


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
    epilog="\b\n"
    + "\n".join(f"{name:<11} {what}" for name, what in ROLES.items())
    + "\n\n"
    + examples(
        "# List the settings of a role",
        "hotnic run handler -- --help",
        "# Print the settings in effect",
        "hotnic run handler --print-config",
    ),
)
@click.argument("role", type=click.Choice(list(ROLES)))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(role: str, arguments: tuple[str, ...]) -> int:
    """Run one of hotnic's roles until it receives SIGTERM or SIGINT.

    A role is configured by environment variables: `hotnic run ROLE -- --help` lists them,
    `hotnic run ROLE --print-config` prints the values in effect.
    """
    module = importlib.import_module(f"services.{role}.__main__")
    code: int = module.main(list(arguments))
    return code
