"""The objects behind an aggregated API's TLS, as partial structs: the Secret with its certificates, and the APIService.

Next: :mod:`schemas.kubernetes.options`, the bodies of the aggregated API itself.
"""

import msgspec

from schemas.kubernetes.objects import ObjectMeta, Resource


class Secret(msgspec.Struct, frozen=True):
    """A Secret; each value is base64."""

    metadata: ObjectMeta = ObjectMeta()
    data: dict[str, str] | None = None


class ServiceReference(msgspec.Struct, frozen=True):
    """The Service that serves an aggregated API."""

    namespace: str = ""
    name: str = ""


class ApiServiceSpec(msgspec.Struct, frozen=True, rename="camel"):
    """Spec of an APIService.

    :ivar ca_bundle: base64 of the PEM text of the CAs that may have signed the server's certificate.
    :ivar insecure_skip_tls_verify: whether any certificate is accepted; a CA bundle is not allowed then.
    """

    service: ServiceReference | None = None
    ca_bundle: str | None = None
    insecure_skip_tls_verify: bool = msgspec.field(default=False, name="insecureSkipTLSVerify")


class ApiService(msgspec.Struct, frozen=True):
    """The registration of one group and version of an aggregated API."""

    metadata: ObjectMeta = ObjectMeta()
    spec: ApiServiceSpec = ApiServiceSpec()


SECRETS = Resource("", "v1", "secrets", "Secret", Secret)
API_SERVICES = Resource("apiregistration.k8s.io", "v1", "apiservices", "APIService", ApiService, namespaced=False)
