"""The messages and the JSON document at the end of addinterface and removeinterface.

Pure; the input is a :class:`services.cli.operations.request.ChangeRequest` that was sent.
"""

from typing import Any

from services.cli.errors import CliError, CommandFailed, StillInProgress
from services.cli.operations.progress import OperationResult, progress_message
from services.cli.operations.request import ChangeRequest, Verb


def success_message(change: ChangeRequest) -> str:
    """Return the message for a request that succeeded."""
    progress = change.progress
    if change.dry_run:
        done = {Verb.ADD: "added to", Verb.REMOVE: "removed from"}[change.verb]
        target = "the template of " if change.persist else ""
        return f'interface "{change.interface}" would be {done} {target}{change.namespace}/{change.vm} (dry run)'
    if progress is None or progress.outcome is None:
        return f"operation {change.operation} accepted; to follow it, run: {change.status_command}"
    interface = f'interface "{change.interface}"'
    name = f"{change.namespace}/{change.vm}"
    if progress.outcome.result is OperationResult.TEMPLATE:
        done = {Verb.ADD: "added to", Verb.REMOVE: "removed from"}[change.verb]
        if progress.was_running:
            state = "the VM was stopped or restarted meanwhile, and has the change when it starts"
        else:
            state = "the VM is not running, the change applies at its next start"
        return f"{interface} {done} the template of {name}; {state}"
    if change.verb is Verb.REMOVE:
        return f"{interface} unplugged from {name}{' and removed from its template' if change.persist else ''}"
    nic_status = progress.nic_status
    addresses = ", ".join(part for part in (nic_status.mac, *nic_status.ips) if part) if nic_status is not None else ""
    return f"{interface} plugged into {name}{' and added to its template' if change.persist else ''}: {addresses}"


def error_of(change: ChangeRequest) -> CliError | None:
    """Return the error that the command ends with; ``None`` when the request succeeded."""
    if change.progress is None:
        return None
    outcome, nic_status = change.progress.outcome, change.progress.nic_status
    warnings = "".join(f"\n  {text}" for text in change.warnings)
    if outcome is None:
        stage = (
            progress_message(nic_status, beside=change.progress.beside)
            if nic_status is not None
            else "no stage reached"
        )
        return StillInProgress(
            f"operation {change.operation} has not completed after {change.timeout:g} s: {stage}{warnings}\n"
            f"the operation continues; to follow it, run: {change.status_command}"
        )
    if outcome.message:
        return CommandFailed(f"operation {change.operation} failed: {outcome.message}{warnings}")
    return None


def document(change: ChangeRequest) -> dict[str, Any]:
    """Return the document for ``-o json``."""
    result: dict[str, Any] = {
        "operation": change.operation,
        "namespace": change.namespace,
        "vmi": change.vm,
        "interface": change.interface,
    }
    if change.persist:
        result["persist"] = True
    if change.dry_run:
        result["dryRun"] = True
    if change.progress is not None:
        outcome = change.progress.outcome
        result["result"] = str(outcome.result) if outcome is not None else str(OperationResult.IN_PROGRESS)
        result["message"] = outcome.message if outcome is not None else ""
        result["warnings"] = change.warnings
        result["status"] = change.progress.nic_status
    return result
