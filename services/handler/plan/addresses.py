"""Plan the address servers of a guest: one for each NIC in the domain that has addresses. Pure.

Next: :mod:`services.handler.addresses.served`, what a server offers.
"""

from services.handler.addresses.served import nics_with_addresses, served_addresses
from services.handler.plan.actions import (
    Observed,
    PublishFailure,
    RecordDeclined,
    ServeAddresses,
    StopAddresses,
)
from services.handler.plan.nics import absent_nics, attached_nics

NOT_SERVED = "AddressesNotServed"


def plan_addresses(observed: Observed) -> list[StopAddresses | ServeAddresses | RecordDeclined | PublishFailure]:
    """Return the servers to stop and to start, and what the user is to know."""
    # NICs with a pending unplug are included: the guest uses the address as long as it has the device.
    candidates = nics_with_addresses((*attached_nics(observed.nics), *absent_nics(observed.nics)), observed.guest)
    if observed.sandbox_error and candidates:
        # An open packet socket would keep the network namespace alive.
        stopped = list(observed.serving) if observed.sandbox_gone else []
        return [
            *map(StopAddresses, stopped),
            *(PublishFailure(nic, NOT_SERVED, observed.sandbox_error, final=False) for nic in candidates),
        ]
    pairs = served_addresses(
        observed.vmi, observed.pod, candidates, observed.guest, observed.sandbox_id, observed.resolver
    )
    desired = {nic.name: served for nic, served in pairs}
    return [
        *(StopAddresses(name) for name, served in observed.serving.items() if desired.get(name) != served),
        *(ServeAddresses(nic, served) for nic, served in pairs if observed.serving.get(nic.name) != served),
        *(RecordDeclined(nic) for nic, _ in pairs if nic.name in observed.declined),
    ]
