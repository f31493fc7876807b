"""A click group that imports its commands when they are called; their one-line help texts are in a table.

A command may be part of another distribution, which is searched only when this command is called. Next:
:mod:`services.cli.commands.change`, a command.
"""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import click

ENTRY_POINTS = "hotnic.commands"
"""The group of entry points under which other distributions provide commands."""


class CommandEntry(NamedTuple):
    """A command that is imported on demand.

    :ivar target: ``module:attribute``.
    :ivar help: one line for the help text of the group.
    """

    target: str
    help: str


class ExternalCommand(NamedTuple):
    """A command that another distribution provides, as an entry point of the group `ENTRY_POINTS` with its name.

    :ivar distribution: the distribution's name.
    :ivar help: one line for the help text of the group, which lists the command whether it is installed or not.
    """

    distribution: str
    help: str


class LazyGroup(click.Group):
    """A group of commands that are imported on demand.

    :param entries: commands by name, in the order of the help text.
    """

    def __init__(self, *args: Any, entries: Mapping[str, CommandEntry | ExternalCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command and return it; ``None`` when there is no command of this name, or it is not installed."""
        entry = self._entries.get(cmd_name)
        if entry is None:
            return None
        if isinstance(entry, ExternalCommand):
            return _load_external(entry.distribution, cmd_name)
        module, _, attribute = entry.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return name, command and arguments.

        :raises click.ClickException: the command's distribution is not installed.
        """
        entry = self._entries.get(args[0])
        if isinstance(entry, ExternalCommand) and not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            raise click.ClickException(
                f'command "{args[0]}" is not installed; it is in the package {entry.distribution}, '
                f"run: pip install {entry.distribution}"
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help line of each command from the table, without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self._entries.items()])


def _load_external(distribution: str, name: str) -> click.Command | None:
    """Return the command that a distribution provides; ``None`` when the distribution is not installed."""
    # Imported here because it takes as long as everything else that `hotnic --help` imports. The distribution is named,
    # because a search of all installed distributions for the group would read the metadata of each.
    from importlib import metadata

    try:
        found = metadata.distribution(distribution).entry_points.select(group=ENTRY_POINTS, name=name)
    except metadata.PackageNotFoundError:
        return None
    for entry_point in found:
        command = entry_point.load()
        assert isinstance(command, click.Command)
        return command
    return None
