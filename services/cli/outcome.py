"""What is said when a change of a VM's network cards is over, or its time is: to people, and as JSON.

Pure, from a :class:`services.cli.change.Change` that has run.
"""

from typing import Any

from services.cli.change import Change, Verb
from services.cli.errors import Complaint, Failed, InProgress
from services.cli.progress import Result, standing


def success(change: Change) -> str:
    """What is printed when all is well."""
    progress = change.progress
    if progress is None or progress.outcome is None:
        return f"operation {change.operation} accepted; follow it with: {change.status_command}"
    name = f"{change.namespace}/{change.vm}"
    if progress.outcome.result is Result.TEMPLATE:
        done, then = {
            Verb.ADD: ("stands in", "it gets the card at its next start"),
            Verb.REMOVE: ("is taken out of", "it is without the card from its next start on"),
        }[change.verb]
        return f"{change.interface} {done} the template of {name}, which does not run: {then}"
    if change.verb is Verb.REMOVE:
        return f"{change.interface} is unplugged from {name}{' and out of its template' if change.persist else ''}"
    nic_status = progress.nic_status
    card = ", ".join(part for part in (nic_status.mac, *nic_status.ips) if part) if nic_status is not None else ""
    return f"{change.interface} is attached to {name}{' and stands in its template' if change.persist else ''}: {card}"


def complaint(change: Change) -> Complaint | None:
    """Why the command does not end with 0; ``None`` when it does."""
    if change.progress is None:
        return None
    outcome, nic_status = change.progress.outcome, change.progress.nic_status
    told = "".join(f"\n  {text}" for text in change.warnings)
    if outcome is None:
        stage = standing(nic_status) if nic_status is not None else "nothing seen of it"
        return InProgress(
            f"still in progress after {change.timeout:g} s: {stage}{told}\nfollow it with: {change.status_command}"
        )
    if outcome.message:
        return Failed(f"operation {change.operation} failed: {outcome.message}{told}")
    return None


def document(change: Change) -> dict[str, Any]:
    """What ``-o json`` prints."""
    answer: dict[str, Any] = {
        "operation": change.operation,
        "namespace": change.namespace,
        "vmi": change.vm,
        "interface": change.interface,
    }
    if change.persist:
        answer["persist"] = True
    if change.progress is not None:
        outcome = change.progress.outcome
        answer["result"] = str(outcome.result) if outcome is not None else str(Result.IN_PROGRESS)
        answer["message"] = outcome.message if outcome is not None else ""
        answer["warnings"] = change.warnings
        answer["rung"] = change.progress.nic_status
    return answer
