"""What api and controller observe, with every field set: the one place where tests choose values for the others."""

from typing import Any

import msgspec

from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.options import AddInterfaceOptions, RemoveInterfaceOptions
from services.api import plan as api
from services.controller import plan as controller
from services.controller.observe import parse_objects
from tests.support.observed import objects

NOW = "2026-01-01T00:00:00Z"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def controller_observed(
    vm: VirtualMachine | None, vmi: VirtualMachineInstance | None, pod: Pod | None, **fields: Any
) -> controller.Observed:
    """Return what the controller observes of these objects; plugs are enabled and nothing was refused."""
    observed = parse_objects(vm, vmi, pod, enabled=True, now=NOW, refused_interfaces=frozenset(), one_at_a_time=False)
    return msgspec.structs.replace(observed, **fields)


def api_observed(
    target: api.RequestTarget, options: AddInterfaceOptions | RemoveInterfaceOptions, **fields: Any
) -> api.Observed:
    """Return what the api observes for a request about ``default/vm1``; no object exists unless it is given."""
    observed = api.Observed(
        target=target,
        namespace=objects.NAMESPACE,
        name="vm1",
        options=options,
        vm=None,
        vmi=None,
        pod=None,
        nad=None,
        nad_allowed=True,
        vm_allowed=True,
        user="someone",
        owned_by_hotnic=True,
        default_binding="masquerade",
        new_id="33333333-3333-4333-8333-333333333333",
        now=NOW,
        traceparent=TRACEPARENT,
    )
    return msgspec.structs.replace(observed, **fields)
