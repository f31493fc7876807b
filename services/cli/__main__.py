"""The entry point of ``hotnic``: selects the command and returns the exit code.

The module of a command, and with it every large library, is imported only when that command runs. The list of commands
and usage errors therefore appear at once. Next: :mod:`services.cli.lazy`, then :mod:`services.cli.commands`.
"""

import os
import sys
from pathlib import Path

import click

from services.cli.errors import INTERRUPTED
from services.cli.lazy import CommandEntry, ExternalCommand, LazyGroup

COMMANDS = {
    "addinterface": CommandEntry("services.cli.commands.change:addinterface", "Plug a network interface into a VM."),
    "removeinterface": CommandEntry(
        "services.cli.commands.change:removeinterface", "Unplug a network interface from a VM."
    ),
    "status": CommandEntry(
        "services.cli.commands.status:status", "Show the hot-plug status of a VM's network interfaces."
    ),
    "trace": CommandEntry("services.cli.commands.trace:trace", "Show the trace of an operation as a waterfall."),
    "events": CommandEntry("services.cli.commands.events:events", "Show the events of a VM's network interfaces."),
    "dead-letter": CommandEntry(
        "services.cli.commands.dead_letter:dead_letter", "List, show and replay dead-lettered messages."
    ),
    "doctor": CommandEntry(
        "services.cli.doctor.command:doctor", "Check the network interfaces of VMs for inconsistencies."
    ),
    "lab": ExternalCommand("hotnic-lab", "Run a development cluster (package hotnic-lab)."),
    "run": CommandEntry("services.cli.commands.run:run", "Run one of hotnic's roles."),
    "node": CommandEntry(
        "services.cli.commands.node:node", "Install the CNI shim on a node, or remove hotnic's files from it."
    ),
    "nats": CommandEntry(
        "services.cli.commands.nats:nats", "Make keys and the configuration of a NATS server for hotnic's identities."
    ),
    "healthcheck": CommandEntry("services.cli.commands.healthcheck:healthcheck", "Check that a role is ready."),
    "chart": CommandEntry("services.cli.chart.command:chart", "Run a hook of the Helm chart, inside the cluster."),
}
"""All commands, in the order of ``hotnic --help``."""


@click.group(cls=LazyGroup, entries=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
# The version is read from the distribution's metadata, which are imported only for this option.
@click.version_option(package_name="hotnic", message="hotnic %(version)s", help="Show the version and exit.")
def hotnic() -> None:
    """Plug network interfaces into running virtual machines and unplug them, without a restart.

    Commands find the cluster as kubectl does: --kubeconfig, $KUBECONFIG, ~/.kube/config.
    Exit codes: 0 done, 1 failed, 2 usage error, 3 refused by the server, 4 still in progress, 5 cluster unreachable.
    """


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    try:
        code = hotnic.main(arguments, prog_name=program_name(sys.argv[0]), standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, a pager) has exited. The interpreter flushes stdout once more when it exits:
        # without a valid descriptor there, it prints an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def program_name(argv0: str) -> str:
    """Return the program's name for help texts: kubectl runs its plugin ``kubectl-hotnic`` as ``kubectl hotnic``."""
    return "kubectl hotnic" if Path(argv0).name.startswith("kubectl-hotnic") else "hotnic"


if __name__ == "__main__":
    sys.exit(main())
