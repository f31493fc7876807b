"""Bodies of the interface subresources, as KubeVirt v1.0.0-rc.0 defines them.

Unknown fields are ignored, as upstream does. Next: :mod:`schemas.bus.hotplug_status`, the response of
``GET …/interfaces``.
"""

import msgspec

MAX_BODY_BYTES = 64 * 1024
"""The api rejects larger bodies with 413."""

OPERATION_HEADER = "Hotnic-Operation"
"""Response header with the id of the operation that a request started or joined."""

PERSIST_REQUIRED = "PersistRequired"
"""Cause of a refusal: KubeVirt owns the VMs, so the request has to go to the subresource of the VM."""


class AddInterfaceOptions(msgspec.Struct, frozen=True):
    """Body of ``PUT …/addinterface``.

    :ivar network_attachment_definition_name: ``name`` or ``namespace/name``; the default namespace is the VMI's.
    :ivar name: name of the new interface, unique in the VMI.
    """

    network_attachment_definition_name: str = msgspec.field(default="", name="networkAttachmentDefinitionName")
    name: str = ""


class RemoveInterfaceOptions(msgspec.Struct, frozen=True):
    """Body of ``PUT …/removeinterface``.

    :ivar name: name of the interface to unplug.
    """

    name: str = ""
