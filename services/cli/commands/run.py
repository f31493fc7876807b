"""``hotnic run ROLE``: runs one of hotnic's roles in this process; the same as ``python -m services.ROLE``.

A role is configured by environment variables; its help text lists them. A role is imported only when it runs or when
its help text is requested. Next: :mod:`services.common.runtime.process`, the frame of every role's process.
"""

import importlib
from types import ModuleType

import click

from services.cli.output import examples

ROLES = {
    "api": "aggregated API server for addinterface and removeinterface",
    "controller": "writes the attachments of a VM's spec to its pod",
    "networks": "attaches pods to networks (one per node)",
    "multus": "CNI meta-plugin daemon (one per node)",
    "handler": "plugs NICs into guests (one per node)",
    "node": "multus, networks and handler in one process",
}
"""One line about each role, for the help text."""


class RoleCommand(click.Command):
    """A role. Its help text is the role's own, with all settings; its other options are passed to the role."""

    def __init__(self, role: str, short_help: str) -> None:
        super().__init__(
            role,
            params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
            callback=lambda arguments: _import_role(role).main(list(arguments)),
            short_help=short_help,
            context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
        )

    def get_help(self, ctx: click.Context) -> str:
        """Return the role's help text."""
        from services.common.runtime.process import help_text

        assert self.name is not None
        return help_text(self.name, _import_role(self.name).Settings).rstrip()


def _import_role(role: str) -> ModuleType:
    return importlib.import_module(f"services.{role}.__main__")


@click.group(
    commands=[RoleCommand(role, short_help) for role, short_help in ROLES.items()],
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="ROLE [--help] [--print-config]",
    epilog=examples(
        "# List the settings of a role",
        "hotnic run handler --help",
        "# Print the settings in effect",
        "hotnic run handler --print-config",
    ),
)
def run() -> None:
    """Run one of hotnic's roles until it receives SIGTERM or SIGINT.

    A role is configured by environment variables: `hotnic run ROLE --help` lists them,
    `hotnic run ROLE --print-config` prints the values in effect.
    """
