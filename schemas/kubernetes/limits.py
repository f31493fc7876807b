"""Limits of the lists in VMs and VMIs. An object of 1.5 MiB has room for twenty thousand interfaces.

Every role compares the items of a VM with one another, and meanwhile handles no other VM: five thousand took seconds.
Next: :mod:`schemas.kubernetes.objects`, whose lists these are.
"""

from typing import Any, Final

from schemas.inputs import Edge, RejectReason, reject

MAX_INTERFACES: Final = 128
"""Interfaces and networks of a VM. A domain has fewer slots."""


def check_count(what: str, items: list[dict[str, Any]], limit: int = MAX_INTERFACES) -> list[dict[str, Any]]:
    """Return a list unless it is too long.

    :param what: what the list has.
    :raises ValueError: it is longer than the limit.
    """
    if len(items) > limit:
        raise reject(Edge.KUBE, RejectReason.TOO_MANY, f"{len(items)} {what}; the limit is {limit}")
    return items
