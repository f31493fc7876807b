"""Plan the answer to a request: refuse it, join the operation in progress, or change an object. Pure: no I/O.

There is one module for each resource, :mod:`~services.api.plan.vmi` and :mod:`~services.api.plan.vm`, and
:mod:`~services.api.plan.beside` for VMs that KubeVirt owns; the checks they share are in
:mod:`~services.api.plan.checks`. Next: :mod:`services.api.apply`.
"""

from schemas.kubernetes.options import AddInterfaceOptions
from services.api.plan import beside, vm, vmi
from services.api.plan.answers import (
    Answer,
    ChangeObject,
    JoinOperation,
    Observed,
    Refused,
    RefuseRequest,
    RequestTarget,
    invalid,
)

__all__ = ["Answer", "ChangeObject", "JoinOperation", "Observed", "RefuseRequest", "RequestTarget", "plan"]


def plan(observed: Observed) -> Answer:
    """Return the answer to a request; objects that cannot be parsed are refused with 422."""
    of_vm = (vm.add, vm.remove) if observed.owned_by_hotnic else (beside.add, beside.remove)
    verbs = {RequestTarget.VM: of_vm, RequestTarget.VMI: (vmi.add, vmi.remove)}
    add, remove = verbs[observed.target]
    answer: Answer
    try:
        answer = add(observed) if isinstance(observed.options, AddInterfaceOptions) else remove(observed)
    except Refused as error:
        answer = error.answer
    except ValueError as error:
        answer = invalid(observed, f"its networks or interfaces cannot be read: {error}").answer
    return answer
