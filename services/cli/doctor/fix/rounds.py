"""Apply the changes of all findings and examine again, until no finding carries a change that can be made.

A step that fails is not repeated. One whose subject has changed is planned again, from a new examination.
Next: :mod:`services.cli.doctor.command`, which prints the result.
"""

from collections.abc import Awaitable, Callable

import msgspec

from services.cli.doctor.fix.apply import FixOutcome, FixResult
from services.cli.doctor.fix.changes import AnnotationRemoval, ElementRemoval, Fix, describe_change
from services.cli.doctor.fix.plan import FixStep, changes_of, plan_fixes
from services.cli.doctor.snapshot import DoctorReport

MAX_ROUNDS = 3
"""How often steps are planned; a subject that changes more often is reported."""


class MadeChange(msgspec.Struct, frozen=True):
    """A change that was tried.

    :ivar description: what it removes, and from where.
    :ivar message: the cause, where nothing was done.
    """

    change: Fix
    description: str
    outcome: FixOutcome
    message: str = ""


class FixReport(msgspec.Struct, frozen=True, rename="camel"):
    """The result of ``hotnic doctor --fix``.

    :ivar examined: the findings before any change.
    :ivar remaining: the findings afterwards; ``None`` after a dry run.
    """

    examined: DoctorReport
    changes: tuple[MadeChange, ...]
    remaining: DoctorReport | None = None

    @property
    def complete(self) -> bool:
        """Whether no finding is left, or would be."""
        if self.remaining is not None:
            return not self.remaining.findings
        would = [made.change for made in self.changes if made.outcome is FixOutcome.WOULD_FIX]
        return all(finding.fix in would for finding in self.examined.findings)


async def fix_findings(
    first: DoctorReport,
    *,
    examine: Callable[[], Awaitable[DoctorReport]],
    apply: Callable[[FixStep], Awaitable[FixResult]],
    clock: Callable[[], float],
    say: Callable[[MadeChange], None],
    dry_run: bool,
) -> FixReport:
    """Make the changes that the findings carry.

    :param first: the findings.
    :param examine: examines again.
    :param apply: applies a step.
    :param clock: returns the seconds since the epoch.
    :param say: called after each change.
    """
    report, made, failed = first, list[MadeChange](), list[FixStep]()

    def add(change: Fix, result: FixResult) -> None:
        made.append(MadeChange(change, describe_change(change), result.outcome, result.message))
        say(made[-1])

    for _ in range(MAX_ROUNDS):
        planned = plan_fixes(report.findings, clock())
        steps = [step for step in planned.steps if step not in failed]
        for step in steps:
            result = await apply(step)
            if result.outcome is FixOutcome.FAILED:
                failed.append(step)
            for change in changes_of(step):
                add(change, result)
        if dry_run or not steps:
            break
        report = await examine()
    for change in plan_fixes(report.findings, clock()).postponed:
        why = "it may belong to an operation or a sandbox that has just begun; try again in 5 minutes"
        add(change, FixResult(FixOutcome.FAILED, why))
    return FixReport(first, tuple(made), None if dry_run else report)


def change_line(made: MadeChange) -> str:
    """Return a change that was tried as text."""
    on_server = isinstance(made.change, AnnotationRemoval | ElementRemoval)
    match made.outcome:
        case FixOutcome.FIXED:
            return f"removed {made.description}"
        case FixOutcome.WOULD_FIX:
            return f"would remove {made.description} ({'server ' if on_server else ''}dry run)"
        case FixOutcome.CHANGED:
            return f"not removed: {made.description}: not as examined any more ({made.message})"
        case FixOutcome.FAILED:
            return f"not removed: {made.description}: {made.message}"
