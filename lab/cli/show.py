"""The text of `hotnic lab status`, from the supervisor's answer (`lab.supervisor.requests`). Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def status_lines(answer: dict[str, Any], now: float) -> Iterator[str]:
    """Yield the lines that show the status of a lab, its processes and its guests.

    :param now: seconds since the epoch.
    """
    yield f"lab {answer['dir']}, up {now - answer['since']:.0f} s" + ("" if answer["up"] else ", starting")
    yield f"KUBECONFIG={answer['kubeconfig']}  ({answer['apiserver']})"
    yield " ".join(f"{name}={value}" for name, value in answer["nats"].items())
    if len(answer["nodes"]) > 1:
        yield "nodes: " + ", ".join(node["name"] for node in answer["nodes"])
    for component in answer["components"]:
        yield from component_lines(component)
    for guest in answer["guests"]:
        place = f"node {guest['node']}  pod {guest['pod']}  pid {guest['pid']}"
        yield f"guest {guest['namespace']}/{guest['name']}  {place}"


def component_lines(component: dict[str, Any]) -> list[str]:
    """Return the lines that show the status of one process."""
    state = component["state"]
    if state == "running":
        ready = {True: "ready", False: "NOT READY", None: ""}[component.get("ready")]
        text = f"running  pid {component['pid']}  {component['seconds']:.0f} s  {ready}".rstrip()
        reason = str(component.get("reason", "")).strip()
        return [f"  {component['name']:<12} {text}", *(f"    {line}" for line in reason.splitlines())]
    if state == "by-hand":
        return [f"  {component['name']:<12} by hand  {'ready' if component['ready'] else component['reason']}"]
    if state == "exited":
        tail = [f"    {line}" for line in component.get("lastLines", [])]
        return [f"  {component['name']:<12} EXITED with {component['code']}  {component['log']}", *tail]
    return [f"  {component['name']:<12} {state}"]
