"""Limits of the lists in VMs and VMIs. An object of 1.5 MiB has room for twenty thousand interfaces.

Every role compares the items of a VM with one another, and meanwhile handles no other VM: five thousand took seconds.
Next: :mod:`schemas.kubernetes.objects`, whose lists these are, and :mod:`schemas.kubernetes.decoding`.
"""

from typing import Any, Final

from schemas import inputs

MAX_INTERFACES: Final = 128
"""Interfaces and networks of a VM. A domain has fewer slots."""
MAX_STATUS_INTERFACES: Final = 1024
"""Entries of a VMI's ``status.interfaces``. KubeVirt has one for each NIC of a guest, and a guest that runs containers
has one NIC for each of them."""
MAX_NAME: Final = 253
"""Characters of a name of a Kubernetes object, and of an interface or network in a spec."""
MAX_NETWORK_NAME: Final = MAX_NAME + 1 + MAX_NAME
"""Characters of a NAD as ``namespace/name``."""
MAX_PART_BYTES: Final = 256 * 1024
"""Bytes of one field. The Kubernetes API limits the annotations of an object to as many."""
MAX_PART_VALUES: Final = 16 * MAX_INTERFACES
"""Values of one field, inner ones included. Decoded, an empty one of three bytes takes eighty."""
MAX_STATUS_VALUES: Final = 12 * MAX_STATUS_INTERFACES
"""The same of ``status.interfaces``."""


def check_count(what: str, items: list[dict[str, Any]] | None, limit: int = MAX_INTERFACES) -> list[dict[str, Any]]:
    """Return a list unless it is longer than a limit.

    :param what: what the list has.
    :raises ValueError: it is longer.
    """
    found = items or []
    inputs.check_count(inputs.Edge.KUBE, len(found), limit, f"{len(found)} {what}")
    return found


def check_items(what: str, items: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the interfaces or networks of a spec unless there are too many, or one has a name that nothing can have.

    Roles copy the names into statuses, events and spans, once for each interface.

    :param what: what the list has.
    :raises ValueError: there are, or one has.
    """
    found = check_count(what, items)
    for item in found:
        multus = item.get("multus")
        reference = multus.get("networkName") if isinstance(multus, dict) else None
        check_length(f"a name in {what}", item.get("name"), MAX_NAME)
        check_length(f"multus.networkName in {what}", reference, MAX_NETWORK_NAME)
    return found


def check_length(what: str, text: object, limit: int) -> None:
    """Refuse a text that is too long; a value of another type passes, because its decoder refuses it.

    :raises ValueError: it is too long.
    """
    if isinstance(text, str) and len(text) > limit:
        text = f"{what} has {len(text)} characters; the limit is {limit}"
        raise inputs.reject(inputs.Edge.KUBE, inputs.RejectReason.TOO_LARGE, text)
