"""What the api answers to a request, and what it changes: pure, from what was observed.

One module per resource: :mod:`~services.api.plan.vmi` and :mod:`~services.api.plan.vm`; the checks they share are in
:mod:`~services.api.plan.checks`. Next: :mod:`services.api.apply`.
"""

from schemas.options import AddInterfaceOptions
from services.api.plan import vm, vmi
from services.api.plan.answers import Answer, Change, Joined, Observed, Refuse, Target, invalid

__all__ = ["Answer", "Change", "Joined", "Observed", "Refuse", "Target", "plan"]


def plan(seen: Observed) -> Answer:
    """Decide on a request."""
    verbs = {Target.VM: (vm.add, vm.remove), Target.VMI: (vmi.add, vmi.remove)}
    add, remove = verbs[seen.target]
    try:
        return add(seen) if isinstance(seen.options, AddInterfaceOptions) else remove(seen)
    except ValueError as error:
        return invalid(seen, f"its networks or interfaces cannot be read: {error}")
