"""The errors of the command line with their exit codes: 1 failed, 3 refused, 4 still in progress, 5 unreachable.

Usage errors are click's own (2). Next: :mod:`services.cli.cluster`, which raises most of these.
"""

from typing import ClassVar

import click

from services.common.telemetry.redact import redact_text

INTERRUPTED = 130
"""Exit code after Ctrl-C, by the convention of shells (128 + SIGINT)."""


class CliError(click.ClickException):
    """An error whose message is printed on standard error; ends the program."""

    exit_code: ClassVar[int] = 1

    def format_message(self) -> str:
        """Return the message for a terminal; it may quote a server."""
        from schemas.inputs import one_line

        return "\n".join(map(one_line, redact_text(self.message).split("\n")))


class CommandFailed(CliError):
    """The command or its operation failed."""


class RefusedByServer(CliError):
    """The server refused the request, or the requested object does not exist."""

    exit_code = 3


class ForeignConfiguration(CliError):
    """A file that is not hotnic's has to be changed first, and only its owner can do that."""

    exit_code = 3


class StillInProgress(CliError):
    """The operation has not completed yet, such as within ``--timeout``."""

    exit_code = 4


class Unreachable(CliError):
    """There is no cluster or NATS server, or it does not answer."""

    exit_code = 5
