"""The functions behind `hotnic lab …`, one for each verb; each returns an exit code.

Only the standard library is imported at module level, so that the command line starts at once; the heavy packages
are imported by the lab's own processes. Output goes to the parameter `output`, one line per call. Next:
`lab.namespaces.holder` (start and stop a lab), `lab.supervisor.requests` (every other verb).
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.cli.show import status_lines
from lab.layout import INSIDE_RUN, NATS_PORT, NODE_NAME, GuestKind, Layout, lab_dir, role_processes
from lab.namespaces import control, holder
from lab.supervisor.collector import Collector

Output = Callable[[str], None]

STOP_DEADLINE = 30.0
"""Seconds that an orderly stop may take before everything is killed."""

COLLECTOR_TIMEOUT = 2.0
"""Seconds that a collector may take to accept a connection before a warning is printed."""


def print_line(text: str) -> None:
    """Write a line to standard output and flush it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_error(text: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(text + "\n")


@dataclass(frozen=True, slots=True)
class UpOptions:
    """Options of `hotnic lab up`."""

    dir: Path = field(default_factory=lab_dir)
    bare: bool = False
    """Skip the sample network and VM."""
    without: tuple[str, ...] = ()
    """Roles that are not started, because they are run by hand."""
    timeout: float = 120.0
    """Seconds until everything must be ready."""
    guests: GuestKind = "qemu"
    kubernetes: str | None = None
    """Version of Kubernetes itself as the cluster, such as ``1.36``."""
    kubelet: bool = False
    """Run the pods with a kubelet on containerd 2."""
    kubevirt: str | None = None
    """Version of KubeVirt to play, such as ``1.9``; hotnic then runs beside it."""
    otlp: str | None = None
    """URL of the collector to which the lab exports its traces."""
    nodes: int = 1
    """The number of nodes."""


def up(options: UpOptions, output: Output = print_line) -> int:
    """Start a lab and return once it is ready; return 1 when it failed (then nothing is left) or runs already."""
    layout = Layout(options.dir)
    if not is_root("up", print_error):
        return 2
    roles = role_processes(options.nodes, beside=options.kubevirt is not None)
    if unknown := [role for role in options.without if role not in roles]:
        print_error(f"no such role: {', '.join(unknown)} (there are {', '.join(roles)})")
        return 2
    if options.otlp is not None:
        try:
            collector = Collector.parse(options.otlp)
        except ValueError as error:
            print_error(f"--otlp: {error}")
            return 2
        warn_unless_reachable(collector)
    try:
        # Fail before anything is created when `make setup` was not run.
        from lab.tools import LabTools, ToolsMissingError

        LabTools.find()
        if options.kubernetes is not None:
            from lab.supervisor.kubernetes import control_plane

            control_plane.provide(options.kubernetes, ["containerd"] if options.kubelet else [])
        progress = holder.launch(
            layout,
            bare=options.bare,
            without=options.without,
            deadline=options.timeout,
            guests=options.guests,
            kubernetes=options.kubernetes,
            kubelet=options.kubelet,
            kubevirt=options.kubevirt,
            otlp=options.otlp,
            nodes=options.nodes,
        )
        return _follow_start(progress, layout, options, output)
    except ToolsMissingError as error:
        print_error(str(error))
    except holder.LabRunningError:
        print_error(
            f"a lab is already running in {layout.dir}; use it (export KUBECONFIG="
            f"{shlex.quote(str(layout.kubeconfig))}), inspect it (hotnic lab status), or stop it (hotnic lab down)"
        )
    except (OSError, holder.LabStuckError) as error:
        print_error(f"cannot start the lab in {layout.dir}: {error}")
    return 1


def warn_unless_reachable(collector: Collector) -> None:
    """Print a warning if the collector does not accept connections; it may be started later."""
    try:
        collector.connect(COLLECTOR_TIMEOUT).close()
    except OSError as error:
        print_error(
            f"warning: no collector answers at {collector.host}:{collector.port} ({error.strerror or error}); "
            "spans that end before it is started are lost there, but not in the lab's span files"
        )


def _follow_start(progress: Any, layout: Layout, options: UpOptions, output: Output) -> int:
    outcome: dict[str, Any] = {"ok": False, "error": f"the supervisor ended (see {layout.log('supervisor')})"}
    by_hand: list[dict[str, Any]] = []
    try:
        for message in progress:
            if "step" in message:
                output(f"{message['at']:7.3f} s  {message['step']} ({message['ms']} ms)")
            elif "by_hand" in message:
                by_hand.append(message)
            elif message.get("done"):
                outcome = message
    except KeyboardInterrupt:
        # The lab has a session of its own, so Ctrl-C has not reached it.
        print_error("interrupted: stopping the lab")
        down(layout.dir, lambda _line: None)
        return 130
    if not outcome["ok"]:
        print_error(f"cannot start the lab in {layout.dir}: {outcome['error']}")
        print_error(f"logs: {layout.logs}")
        down(layout.dir, lambda _line: None)
        return 1
    output(f"{outcome['at']:7.3f} s  the lab in {layout.dir} is up")
    for message in by_hand:
        output(f"run {message['by_hand']} by hand:\n  {message['command']}")
    if options.otlp:
        output(f"traces are exported to {options.otlp}")
    identity = layout.identity()
    output(f"export KUBECONFIG={shlex.quote(str(layout.kubeconfig))}")
    if identity is not None:
        variables = layout.nats_environment(identity.nats_port).items()
        output("export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in variables))
    return 0


def down(directory: Path, output: Output = print_line) -> int:
    """Stop the lab in `directory` and remove what it leaves except logs and traces; do nothing when there is none."""
    layout = Layout(directory)
    if not layout.dir.is_dir():
        output(f"there is no lab in {layout.dir}")
        return 0
    if not is_root("down", print_error):
        return 2
    before = time.monotonic()
    running = holder.is_running(layout)
    if running:
        _stop(layout, output)
    try:
        lock = holder.acquire(layout, timeout=10.0)
    except holder.LabRunningError:
        print_error(f"the lab in {layout.dir} does not stop (see {layout.log('supervisor')})")
        return 1
    try:
        holder.clean(layout)
    except holder.LabStuckError as error:
        print_error(str(error))
        return 1
    finally:
        os.close(lock)
    outcome_text = "is down" if running else "was not running; leftovers are removed"
    output(f"{time.monotonic() - before:7.3f} s  the lab in {layout.dir} {outcome_text}")
    return 0


def _stop(layout: Layout, output: Output) -> None:
    """Request an orderly stop; kill everything when it takes longer than `STOP_DEADLINE`."""
    try:
        for message in control.request(layout.control_socket, {"verb": "down"}, timeout=STOP_DEADLINE):
            if "stopped" in message:
                output(f"{message['stopped']} stopped ({message['ms']} ms)")
        # The lock is free only when the last process that holds the lab's namespaces has ended.
        os.close(holder.acquire(layout, timeout=STOP_DEADLINE))
    except (control.UnreachableError, holder.LabRunningError):
        holder.kill(layout)


def status(directory: Path, *, as_json: bool = False, output: Output = print_line) -> int:
    """Show the lab's processes; return 1 when no lab runs, or a process has ended or is not ready."""
    layout = Layout(directory)
    try:
        answer = _request(layout, {"verb": "status"})
    except control.UnreachableError:
        output(json.dumps({"up": False, "dir": str(layout.dir)}) if as_json else f"no lab runs in {layout.dir}")
        return 1
    healthy = answer["up"] and all(
        c["state"] == "by-hand" or (c["state"] == "running" and c.get("ready", True)) for c in answer["components"]
    )
    if as_json:
        output(json.dumps(answer, indent=2))
        return 0 if healthy else 1
    for line in status_lines(answer, time.time()):
        output(line)
    return 0 if healthy else 1


def change(directory: Path, verb: str, component: str, output: Output = print_line) -> int:
    """Start, stop or restart one process of the lab.

    :param verb: `start`, `stop` or `restart`.
    """
    layout = Layout(directory)
    try:
        answer = _request(layout, {"verb": verb, "component": component}, timeout=90.0)
    except control.UnreachableError:
        print_error(f"no lab runs in {layout.dir}")
        return 1
    if not answer["ok"]:
        print_error(answer["error"])
        return 1
    output(f"{component}: {verb} done in {answer['ms']} ms")
    return 0


def restart(directory: Path, component: str, output: Output = print_line) -> int:
    """Restart one process of the lab."""
    return change(directory, "restart", component, output)


def kubeconfig(directory: Path, output: Output = print_line) -> int:
    """Print the path of the lab's kubeconfig."""
    layout = Layout(directory)
    if not layout.kubeconfig.exists():
        print_error(f"no lab runs in {layout.dir} (hotnic lab up)")
        return 1
    output(str(layout.kubeconfig))
    return 0


def exec_(directory: Path, command: Sequence[str], *, node: str = NODE_NAME) -> int:
    """Run a command inside a node's namespaces, in the same working directory; return only when it cannot start."""
    layout = Layout(directory)
    if not is_root("exec", print_error):
        return 2
    enter: list[str] | None = []
    try:
        pid = control.peer_pid(layout.control_socket)
        if node != NODE_NAME:
            nodes = {one["name"]: one["enter"] for one in _request(layout, {"verb": "status"})["nodes"]}
            enter = nodes.get(node)
    except control.UnreachableError:
        print_error(f"no lab runs in {layout.dir}")
        return 1
    if enter is None:
        print_error(f"no node {node} in {layout.dir} (there are {', '.join(nodes)})")
        return 1
    environment = {
        **os.environ,
        "KUBECONFIG": str(layout.kubeconfig),
        **layout.nats_environment(NATS_PORT),
        "HOTNIC_LAB_RUN": str(INSIDE_RUN),
        "HOTNIC_NODE_NAME": node,
        # Process 1 is in the first node's namespaces.
        "HOTNIC_HOST_PROCESS": "/proc/self",
    }
    # nsenter changes the working directory to the root of the mount namespace; `env -C` changes it back.
    into_lab = ["nsenter", "--target", str(pid), "--mount", "--net", "--pid", "--"]
    argv = [*into_lab, *enter, "env", "-C", os.getcwd(), *command]
    try:
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        print_error(f"cannot run {argv[0]}: {error.strerror}")
        return 1


def logs(directory: Path, component: str, *, follow: bool = False, output: Output = print_line) -> int:
    """Print the log of one process; with `follow`, continue until interrupted."""
    path = Layout(directory).log(component)
    if not path.exists():
        known = sorted(log.stem for log in path.parent.glob("*.log"))
        print_error(f"no log {path}" + (f" (logs exist of: {', '.join(known)})" if known else ""))
        return 1
    try:
        with path.open(errors="replace") as log:
            while True:
                for line in log:
                    output(line.rstrip("\n"))
                if not follow:
                    return 0
                time.sleep(0.2)
    except KeyboardInterrupt:
        return 0


def console(directory: Path, vm: str, *, namespace: str = "default") -> int:
    """Attach the terminal to a guest's serial console until Ctrl-] is typed."""
    from lab.cli import console as terminal

    layout = Layout(directory)
    try:
        answer = _request(layout, {"verb": "status"})
    except control.UnreachableError:
        print_error(f"no lab runs in {layout.dir}")
        return 1
    for guest in answer["guests"]:
        if (guest["namespace"], guest["name"]) == (namespace, vm):
            return terminal.attach(Path(guest["folder"]), print_error)
    running = ", ".join(f"{g['namespace']}/{g['name']}" for g in answer["guests"]) or "none"
    print_error(f"no guest {namespace}/{vm} runs in {layout.dir} (running: {running})")
    return 1


def is_root(verb: str, output: Output) -> bool:
    """Return whether this process may create namespaces; when not, print the exact command that may."""
    if os.geteuid() == 0:
        return True
    output(f"the lab needs root: sudo {shlex.join([sys.argv[0], *(sys.argv[1:] or ['lab', verb])])}")
    return False


def _request(layout: Layout, message: dict[str, Any], timeout: float = 10.0) -> dict[str, Any]:
    answers = list(control.request(layout.control_socket, message, timeout))
    if not answers:
        raise control.UnreachableError(
            f"{layout.control_socket}: the supervisor closed the connection without an answer"
        )
    return answers[-1]
