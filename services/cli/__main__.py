"""``hotnic``: the entry point. Finds the command, turns every outcome into an exit code, imports nothing else.

A command's module, and with it every heavy library, is imported when that command runs, never for a help text or a
usage error. Next: :mod:`services.cli.lazy`, then one module per command.
"""

import os
import sys
from pathlib import Path

import click

from services.cli.errors import INTERRUPTED
from services.cli.lazy import Entry, LazyGroup

COMMANDS = {
    "addinterface": Entry("services.cli.addinterface:addinterface", "Plug a network card into a running VM."),
    "removeinterface": Entry(
        "services.cli.removeinterface:removeinterface", "Unplug a network card from a running VM."
    ),
    "status": Entry("services.cli.status:status", "Show how far each network card of a VM has come."),
    "trace": Entry("services.cli.trace:trace", "Show every hop of an operation, with its milliseconds."),
    "events": Entry("services.cli.events:events", "Show what happened to the network cards of a VM, and when."),
    "dead-letter": Entry("services.cli.dead_letter:dead_letter", "Look at messages that no service could use."),
    "doctor": Entry("services.cli.doctor:doctor", "Check that everything about the network cards of VMs agrees."),
    "lab": Entry("services.cli.lab:lab", "Run a one-machine cluster for development."),
    "run": Entry("services.cli.run:run", "Run one of hotnic's services."),
}


@click.group(cls=LazyGroup, entries=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
def hotnic() -> None:
    """Give a running virtual machine a network card, or take one away, without a restart.

    Commands that talk to a cluster find it as kubectl does: --kubeconfig, $KUBECONFIG, ~/.kube/config.
    Exit codes: 0 done, 1 failed, 2 usage, 3 refused by the server, 4 still in progress, 5 cluster unreachable.
    """


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        code = hotnic.main(arguments, prog_name=program_name(sys.argv[0]), standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output (head, a pager) has enough; the interpreter must not complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def program_name(argv0: str) -> str:
    """What help texts call the program: kubectl runs its plugin ``kubectl-hotnic`` as ``kubectl hotnic``."""
    return "kubectl hotnic" if Path(argv0).name.startswith("kubectl-hotnic") else "hotnic"


if __name__ == "__main__":
    sys.exit(main())
