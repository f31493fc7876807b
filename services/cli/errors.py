"""What can go wrong for a user, each with its exit code: 1 failed, 3 refused, 4 still in progress, 5 unreachable.

Usage errors are click's own (2). Next: :mod:`services.cli.cluster`, which meets most of these.
"""

from typing import ClassVar

import click

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell gives it (128 + SIGINT)."""


class Complaint(click.ClickException):
    """A message for the user on standard error; ends the program."""

    exit_code: ClassVar[int] = 1


class Failed(Complaint):
    """The operation ended without success."""


class Refused(Complaint):
    """The server understood and said no."""

    exit_code = 3


class InProgress(Complaint):
    """The time is over, the operation is not."""

    exit_code = 4


class Unreachable(Complaint):
    """There is no cluster, or it does not answer."""

    exit_code = 5
