"""Limits of the lists in VMs and VMIs. An object of 1.5 MiB has room for twenty thousand interfaces.

Every role compares the items of a VM with one another, and meanwhile handles no other VM: five thousand took seconds.
Next: :mod:`schemas.kubernetes.objects`, whose lists these are.
"""

from typing import Any, Final

from schemas import inputs

MAX_INTERFACES: Final = 128
"""Interfaces and networks of a VM. A domain has fewer slots."""


def check_count(what: str, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a list unless it is longer than :data:`MAX_INTERFACES`.

    :param what: what the list has.
    :raises ValueError: it is longer.
    """
    inputs.check_count(inputs.Edge.KUBE, len(items), MAX_INTERFACES, f"{len(items)} {what}")
    return items
