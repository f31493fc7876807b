"""``hotnic node``: install hotnic's shim on a node, and remove hotnic's files from it.

Both work on the files of one node and need no cluster: an init container and the hook of an uninstall run them.
Next: :mod:`services.cli.node`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from services.cli.errors import CommandFailed, ForeignConfiguration, StillInProgress
from services.cli.output import Duration, examples, say, say_json

if TYPE_CHECKING:
    from services.cli.node.apply import CleaningReport


@click.group()
def node() -> None:
    """Install the CNI shim on a node, or remove hotnic's files from it."""


@node.command(
    "install-shim",
    epilog=examples("hotnic node install-shim --source /opt/hotnic/share/hotnic-multus --bin-dir /host/opt/cni/bin"),
)
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    envvar="HOTNIC_SHIM",
    required=True,
    metavar="FILE",
    help="The shim (default: HOTNIC_SHIM, which an image sets to the one that needs no Python).",
)
@click.option(
    "--bin-dir",
    type=click.Path(path_type=Path),
    default=Path("/opt/cni/bin"),
    show_default=True,
    metavar="DIR",
    help="Directory of the node's CNI plugins.",
)
def install_shim(source: Path, bin_dir: Path) -> None:
    """Install the CNI shim among the node's plugins.

    The shim is replaced as a whole, so that copies of the old one may be running. If the installed one is the same,
    nothing is written.
    """
    from schemas.multus import SHIM_NAME
    from services.common.node.capabilities import name_missing
    from services.common.node.files import install_executable

    target = bin_dir / SHIM_NAME
    try:
        written = install_executable(source, target)
    except OSError as error:
        why = f"{error.strerror or error}{name_missing(error.errno, 'DAC_OVERRIDE')}"
        raise CommandFailed(f"cannot install {source} as {target}: {why}") from error
    say(f"installed {target}" if written else f"{target} is up to date")


@node.command(
    epilog=examples(
        "# Show what would be removed",
        "hotnic node clean --dry-run",
        "# Clean the node whose file system is mounted at /host, and print JSON",
        "hotnic node clean --host-root /host -o json",
    )
)
@click.option(
    "--host-root", default="/", show_default=True, envvar="HOTNIC_HOST_ROOT", help="Where the node's file system is."
)
@click.option("--cni-conf-dir", default="/etc/cni/net.d", show_default=True, help="The runtime's CNI configurations.")
@click.option("--cni-bin-dir", default="/opt/cni/bin", show_default=True, help="The node's CNI plugins.")
@click.option("--state-dir", default="/var/lib/cni/multus", show_default=True, help="The multus daemon's records.")
@click.option("--socket-dir", default="/run/multus", show_default=True, help="The multus daemon's socket.")
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
@click.option(
    "--timeout",
    type=Duration(),
    default="30s",
    show_default=True,
    help="How long to wait for a daemon that still runs.",
)
@click.option(
    "-o", "--output", type=click.Choice(["json", "text"]), default="text", show_default=True, help="Output format."
)
def clean(
    host_root: str,
    cni_conf_dir: str,
    cni_bin_dir: str,
    state_dir: str,
    socket_dir: str,
    dry_run: bool,
    timeout: float,
    output: str,
) -> int:
    """Remove hotnic's files from this node after its multus daemon has ended.

    00-multus.conf goes first, if it is hotnic's own, then the shim, the daemon's socket and its records. A file that is
    not hotnic's is left. No network is taken from a running pod. Directories are the node's own paths, below
    --host-root.

    \b
    Exit codes:
      0  nothing of hotnic is left that the node or a pod uses
      1  a file could not be removed, or the daemon still runs; try again
      3  a configuration that hotnic did not generate calls the shim; delete it first
      4  CRI-O needs the shim for pods that run; try again when they are gone
    """
    from services.cli.node.apply import clean as clean_node
    from services.cli.node.observe import NodeDirectories

    for path in (cni_conf_dir, cni_bin_dir, state_dir, socket_dir):
        if not path.startswith("/"):
            raise click.UsageError(f"{path} is not an absolute path")
    paths = NodeDirectories(
        host_root=host_root,
        cni_conf_dir=cni_conf_dir,
        cni_bin_dir=cni_bin_dir,
        state_dir=state_dir,
        socket_dir=socket_dir,
    )
    try:
        report = clean_node(paths, dry_run=dry_run, timeout=timeout)
    except OSError as error:
        raise CommandFailed(f"cannot read the node's files: {error}") from error
    if output == "json":
        say_json(report)
    else:
        say(*_lines(report))
    if report.failed:
        return CommandFailed.exit_code
    if report.refused:
        raise ForeignConfiguration(report.refused)
    if report.later:
        raise StillInProgress(report.later)
    return 0


def _lines(report: CleaningReport) -> list[str]:
    verb = "would remove" if report.dry_run else "removed"
    lines = [f"{verb} {item.path}: {item.reason}" for item in report.removed]
    lines += [f"left {item.path}: {item.reason}" for item in report.left]
    lines += [f"failed {item.path}: {item.reason}" for item in report.failed]
    return lines or ["nothing of hotnic is on this node"]
