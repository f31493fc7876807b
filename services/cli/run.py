"""``hotnic run ROLE``: one of the services, in this process; the same as ``python -m services.ROLE``.

A service is configured by environment variables; its own ``--help`` lists them.
"""

import importlib

import click

from services.cli.examples import examples

ROLES = {
    "api": "aggregated API server: takes the requests",
    "controller": "turns a VM's spec into its pod's attachments",
    "networks": "attaches pods to networks (one per node)",
    "multus": "CNI meta-plugin daemon (one per node)",
    "handler": "wires cards into guests (one per node)",
}


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
    epilog="\b\n"
    + "\n".join(f"{name:<11} {what}" for name, what in ROLES.items())
    + "\n\n"
    + examples(
        "# what a role can be told, and what it was told",
        "hotnic run handler -- --help",
        "hotnic run handler --print-config",
    ),
)
@click.argument("role", type=click.Choice(list(ROLES)))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(role: str, arguments: tuple[str, ...]) -> int:
    """Run one of hotnic's services until it is told to stop.

    It is configured by environment variables: `hotnic run ROLE -- --help` lists them,
    `hotnic run ROLE --print-config` prints what they say.
    """
    module = importlib.import_module(f"services.{role}.__main__")
    code: int = module.main(list(arguments))
    return code
