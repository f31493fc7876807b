"""Bodies of the interface subresources, as KubeVirt v1.0.0-rc.0 defines them.

Unknown fields are ignored, as upstream does.
"""

import msgspec

MAX_BODY_BYTES = 64 * 1024
"""Larger bodies get 413."""

OPERATION_HEADER = "Hotnic-Operation"
"""Response header that names the operation a request started or joined."""


class AddInterfaceOptions(msgspec.Struct, frozen=True):
    """Body of ``PUT …/addinterface``.

    :ivar network_attachment_definition_name: ``name`` or ``namespace/name``; without a namespace, the VMI's.
    :ivar name: the name of the new interface, unique in the VMI.
    """

    network_attachment_definition_name: str = msgspec.field(default="", name="networkAttachmentDefinitionName")
    name: str = ""


class RemoveInterfaceOptions(msgspec.Struct, frozen=True):
    """Body of ``PUT …/removeinterface``."""

    name: str = ""
