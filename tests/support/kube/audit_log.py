"""Lines of the audit log of a kube-apiserver: who requested what, and the answer."""

import msgspec


class AuditedObject(msgspec.Struct, frozen=True, rename="camel"):
    """What a request was for."""

    api_group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""

    @property
    def full_resource(self) -> str:
        """The resource as rules name it, with its subresource."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


class AuditedUser(msgspec.Struct, frozen=True):
    """Who sent a request."""

    username: str = ""


class AuditedStatus(msgspec.Struct, frozen=True):
    """How a request was answered."""

    code: int = 0


class AuditedRequest(msgspec.Struct, frozen=True, rename="camel"):
    """One line of the audit log: a request and its answer."""

    verb: str
    user: AuditedUser
    request_uri: str = msgspec.field(name="requestURI", default="")
    object_ref: AuditedObject | None = None
    response_status: AuditedStatus = AuditedStatus()
