"""What `hotnic lab …` does: one function for each verb, returning its exit code.

Only the standard library is imported here, so that the command line answers at once; the heavy parts run in the
lab's own processes. Text goes to `say`, one line at a time. Next: `holder.py` (up, down), `requests.py` (the rest).
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

from services.lab import control, holder
from services.lab.layout import INSIDE_RUN, NATS_PORT, ROLES, Guests, Layout, lab_dir

Say = Callable[[str], None]

STOP_DEADLINE = 30.0
"""Seconds an orderly stop may take before everything is killed."""


def say_line(text: str) -> None:
    """Write a line to standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say_error(text: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(text + "\n")


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `lab up` can be told."""

    dir: Path = field(default_factory=lab_dir)
    bare: bool = False
    """Without the sample network and VM."""
    without: tuple[str, ...] = ()
    """Roles to be run by hand."""
    timeout: float = 120.0
    """Seconds until everything must be ready."""
    guests: Guests = "qemu"


def up(options: UpOptions, say: Say = say_line) -> int:
    """Start a lab; returns once it is ready, 1 when it failed (nothing is left then) or runs already."""
    layout = Layout(options.dir)
    if not is_root("up", say_error):
        return 2
    unknown = [role for role in options.without if role not in ROLES]
    if unknown:
        say_error(f"no such role: {', '.join(unknown)} (there are {', '.join(ROLES)})")
        return 2
    try:
        from services.lab.tools import Tools, ToolsMissingError

        Tools.find()
        progress = holder.launch(
            layout, bare=options.bare, without=options.without, deadline=options.timeout, guests=options.guests
        )
        return _follow_start(progress, layout, options, say)
    except ToolsMissingError as error:
        say_error(str(error))
    except holder.LabRunningError:
        say_error(
            f"a lab is running in {layout.dir}; use it (export KUBECONFIG={shlex.quote(str(layout.kubeconfig))}), "
            f"look at it (hotnic lab status), or stop it (hotnic lab down)"
        )
    except (OSError, holder.LabStuckError) as error:
        say_error(f"the lab in {layout.dir} could not be started: {error}")
    return 1


def _follow_start(progress: Any, layout: Layout, options: UpOptions, say: Say) -> int:
    outcome: dict[str, Any] = {"ok": False, "error": f"the supervisor ended (see {layout.log('supervisor')})"}
    by_hand: list[dict[str, Any]] = []
    try:
        for message in progress:
            if "step" in message:
                say(f"{message['at']:7.3f} s  {message['step']} ({message['ms']} ms)")
            elif "by_hand" in message:
                by_hand.append(message)
            elif message.get("done"):
                outcome = message
    except KeyboardInterrupt:
        say_error("interrupted: stopping what was started")
        down(layout.dir, lambda _line: None)
        return 130
    if not outcome["ok"]:
        say_error(f"the lab in {layout.dir} could not be started: {outcome['error']}")
        say_error(f"logs: {layout.logs}")
        down(layout.dir, lambda _line: None)
        return 1
    say(f"{outcome['at']:7.3f} s  the lab in {layout.dir} is up")
    for message in by_hand:
        say(f"run {message['by_hand']} by hand:\n  {message['command']}")
    identity = layout.identity()
    say(f"export KUBECONFIG={shlex.quote(str(layout.kubeconfig))}")
    if identity is not None:
        say(f"export NATS_URL=nats://127.0.0.1:{identity.nats_port}")
    return 0


def down(directory: Path, say: Say = say_line) -> int:
    """Stop the lab in `directory` and remove all it leaves; harmless when there is none."""
    layout = Layout(directory)
    if not layout.dir.is_dir():
        say(f"there is no lab in {layout.dir}")
        return 0
    if not is_root("down", say_error):
        return 2
    before = time.monotonic()
    running = holder.alive(layout)
    if running:
        _stop(layout, say)
    try:
        lock = holder.acquire(layout, timeout=10.0)
    except holder.LabRunningError:
        say_error(f"the lab in {layout.dir} does not end (see {layout.log('supervisor')})")
        return 1
    try:
        holder.clean(layout)
    except holder.LabStuckError as error:
        say_error(str(error))
        return 1
    finally:
        os.close(lock)
    what = "is down" if running else "was not running; nothing of it is left"
    say(f"{time.monotonic() - before:7.3f} s  the lab in {layout.dir} {what}")
    return 0


def _stop(layout: Layout, say: Say) -> None:
    """Ask the supervisor to stop; kill everything when it does not within the deadline."""
    try:
        for message in control.request(layout.control_socket, {"verb": "down"}, timeout=STOP_DEADLINE):
            if "stopped" in message:
                say(f"{message['stopped']} stopped ({message['ms']} ms)")
        os.close(holder.acquire(layout, timeout=STOP_DEADLINE))
    except (control.UnreachableError, holder.LabRunningError):
        holder.kill(layout)


def status(directory: Path, *, as_json: bool = False, say: Say = say_line) -> int:
    """Show what runs; 1 when no lab runs, or something of it has ended or is not ready."""
    layout = Layout(directory)
    try:
        answer = _ask(layout, {"verb": "status"})
    except control.UnreachableError:
        say(json.dumps({"up": False, "dir": str(layout.dir)}) if as_json else f"no lab runs in {layout.dir}")
        return 1
    healthy = answer["up"] and all(
        c["state"] == "by-hand" or (c["state"] == "running" and c.get("ready", True)) for c in answer["components"]
    )
    if as_json:
        say(json.dumps(answer, indent=2))
        return 0 if healthy else 1
    say(f"lab {layout.dir}, up {time.time() - answer['since']:.0f} s" + ("" if answer["up"] else ", starting"))
    say(f"KUBECONFIG={answer['kubeconfig']}  ({answer['apiserver']})")
    say(f"NATS_URL={answer['nats']}")
    for component in answer["components"]:
        for line in component_lines(component):
            say(line)
    for guest in answer["guests"]:
        say(f"guest {guest['namespace']}/{guest['name']}  pod {guest['pod']}  pid {guest['pid']}")
    return 0 if healthy else 1


def component_lines(component: dict[str, Any]) -> list[str]:
    """Return how one process is shown."""
    state = component["state"]
    if state == "running":
        ready = {True: "ready", False: "NOT READY", None: ""}[component.get("ready")]
        text = f"running  pid {component['pid']}  {component['seconds']:.0f} s  {ready}".rstrip()
        reason = str(component.get("reason", "")).strip()
        return [f"  {component['name']:<11} {text}", *(f"    {line}" for line in reason.splitlines())]
    if state == "by-hand":
        return [f"  {component['name']:<11} by hand  {'ready' if component['ready'] else component['reason']}"]
    if state == "exited":
        tail = [f"    {line}" for line in component.get("lastLines", [])]
        return [f"  {component['name']:<11} EXITED with {component['code']}  {component['log']}", *tail]
    return [f"  {component['name']:<11} {state}"]


def change(directory: Path, verb: str, component: str, say: Say = say_line) -> int:
    """Start, stop or restart one process of the lab (`verb` is one of these words)."""
    layout = Layout(directory)
    try:
        answer = _ask(layout, {"verb": verb, "component": component}, timeout=60.0)
    except control.UnreachableError:
        say_error(f"no lab runs in {layout.dir}")
        return 1
    if not answer["ok"]:
        say_error(answer["error"])
        return 1
    say(f"{component}: {verb} done in {answer['ms']} ms")
    return 0


def restart(directory: Path, component: str, say: Say = say_line) -> int:
    """Restart one process of the lab."""
    return change(directory, "restart", component, say)


def kubeconfig(directory: Path, say: Say = say_line) -> int:
    """Print the path of the lab's kubeconfig."""
    layout = Layout(directory)
    if not layout.kubeconfig.exists():
        say_error(f"no lab runs in {layout.dir} (hotnic lab up)")
        return 1
    say(str(layout.kubeconfig))
    return 0


def exec_(directory: Path, command: Sequence[str]) -> int:
    """Run a command inside the lab's namespaces, in the same working directory; does not return when it starts."""
    layout = Layout(directory)
    if not is_root("exec", say_error):
        return 2
    try:
        pid = control.peer_pid(layout.control_socket)
    except control.UnreachableError:
        say_error(f"no lab runs in {layout.dir}")
        return 1
    environment = {
        **os.environ,
        "KUBECONFIG": str(layout.kubeconfig),
        "NATS_URL": f"nats://127.0.0.1:{NATS_PORT}",
        "HOTNIC_LAB_RUN": str(INSIDE_RUN),
    }
    # Entering a mount namespace moves to its root; env -C goes back to where the user is.
    argv = ["nsenter", "--target", str(pid), "--mount", "--net", "--pid", "--", "env", "-C", os.getcwd(), *command]
    try:
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        say_error(f"{argv[0]} cannot be run: {error.strerror}")
        return 1


def logs(directory: Path, component: str, *, follow: bool = False, say: Say = say_line) -> int:
    """Print the log of one process; with `follow`, go on until interrupted."""
    path = Layout(directory).log(component)
    if not path.exists():
        known = sorted(log.stem for log in path.parent.glob("*.log"))
        say_error(f"there is no log {path}" + (f" (there are {', '.join(known)})" if known else ""))
        return 1
    try:
        with path.open(errors="replace") as log:
            while True:
                for line in log:
                    say(line.rstrip("\n"))
                if not follow:
                    return 0
                time.sleep(0.2)
    except KeyboardInterrupt:
        return 0


def console(directory: Path, vm: str, *, namespace: str = "default") -> int:
    """Attach the terminal to a guest's serial console until Ctrl-] is typed."""
    from services.lab import console as terminal

    layout = Layout(directory)
    try:
        answer = _ask(layout, {"verb": "status"})
    except control.UnreachableError:
        say_error(f"no lab runs in {layout.dir}")
        return 1
    for guest in answer["guests"]:
        if (guest["namespace"], guest["name"]) == (namespace, vm):
            return terminal.attach(layout.guests / guest["uid"], say_error)
    running = ", ".join(f"{g['namespace']}/{g['name']}" for g in answer["guests"]) or "none"
    say_error(f"no guest {namespace}/{vm} runs in {layout.dir} (running: {running})")
    return 1


def is_root(verb: str, complain: Say) -> bool:
    """Return whether this process may make namespaces; complains with the exact command when not."""
    if os.geteuid() == 0:
        return True
    complain(f"the lab needs root: sudo {shlex.join([sys.argv[0], *(sys.argv[1:] or ['lab', verb])])}")
    return False


def _ask(layout: Layout, message: dict[str, Any], timeout: float = 10.0) -> dict[str, Any]:
    answers = list(control.request(layout.control_socket, message, timeout))
    if not answers:
        raise control.UnreachableError(f"{layout.control_socket}: no answer")
    return answers[-1]
