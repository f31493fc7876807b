"""Identify the caller: the aggregation layer authenticates with a client certificate and names the user in headers.

Source: Kubernetes "Configure the aggregation layer": ConfigMap ``kube-system/extension-apiserver-authentication``.
The TLS server cannot require a certificate, because the aggregator's availability probe has none.
Next: :mod:`services.api.request`.
"""

import ssl
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

import msgspec
from multidict import MultiMapping

from schemas.inputs import Edge, InputDecoder
from schemas.kubernetes.objects import CONFIG_MAPS, ConfigMap
from services.common.http.server import StatusError
from services.common.http.tls import ServerTls
from services.common.kube.cache.reflector import Key, Reflector
from services.common.kube.client import Kube
from services.common.telemetry.logs import Log

NAMESPACE, NAME = "kube-system", "extension-apiserver-authentication"

_list = InputDecoder(Edge.KUBE, list[str])


class UserIdentity(msgspec.Struct, frozen=True):
    """The user of a request, as the aggregation layer has authenticated them.

    :ivar user: the user's name.
    :ivar groups: the user's groups.
    :ivar extra: further fields of the authenticator, for the authorizer.
    :ivar uid: the user's unique id; empty if the authenticator knows none, or the aggregation layer does not send it.
    """

    user: str
    groups: tuple[str, ...]
    extra: dict[str, tuple[str, ...]] = {}
    uid: str = ""


class FrontProxy(msgspec.Struct, frozen=True):
    """The cluster's settings by which the aggregation layer authenticates.

    :ivar ca: PEM bundle of the CA that signs its client certificate.
    :ivar names: the allowed common names of the certificate; empty allows all.
    :ivar user_headers: the headers that may name the user.
    :ivar group_headers: the headers that name the user's groups.
    :ivar extra_prefixes: the prefixes of the headers with the extra fields.
    :ivar uid_headers: the headers that may hold the user's unique id, in order of preference. There is no default: an
        aggregation layer that does not set such a header passes on that of the client.
    """

    ca: str
    names: tuple[str, ...]
    user_headers: tuple[str, ...]
    group_headers: tuple[str, ...]
    extra_prefixes: tuple[str, ...] = ("X-Remote-Extra-",)
    uid_headers: tuple[str, ...] = ()

    def identify(self, peer_name: str | None, headers: MultiMapping[str], groups: Sequence[str]) -> UserIdentity:
        """Return the user of a request.

        :param peer_name: common name of the verified client certificate; ``None`` without a certificate.
        :param headers: the headers of the request.
        :param groups: the values of the group headers, in order.
        :raises StatusError: 401; the caller is not the aggregation layer, or it names no user, several, or no group.
        """
        if peer_name is None:
            raise StatusError(
                401, "Unauthorized", "no verified client certificate; send the request to the Kubernetes API server"
            )
        # virt-api omits this check, so that any certificate of the CA may name any user.
        if self.names and peer_name not in self.names:
            raise StatusError(
                401, "Unauthorized", f"the client certificate of {peer_name!r} is not the aggregation layer's"
            )
        users = {value for name in self.user_headers for value in headers.getall(name, []) if value}
        groups = [group for group in groups if group]
        # As virt-api: a user without a group is not authenticated.
        if not users or not groups:
            raise StatusError(401, "Unauthorized", "the aggregation layer named no user or no group")
        # One of them may be a header of the client that the aggregation layer has passed on.
        if len(users) > 1:
            raise StatusError(401, "Unauthorized", "the aggregation layer named several users")
        [user] = users
        uid = next((headers[name] for name in self.uid_headers if headers.get(name)), "")
        return UserIdentity(user, tuple(groups), self._extra(headers), uid)

    def _extra(self, headers: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for header, value in headers.items():
            for prefix in self.extra_prefixes:
                if header.lower().startswith(prefix.lower()):
                    # Header names are case-insensitive; bytes that a header name cannot have are percent-encoded.
                    key = unquote(header[len(prefix) :].lower())
                    found[key] = (*found.get(key, ()), value)
        return found


class FollowedFrontProxy:
    """Keeps the settings equal to the ConfigMap, which changes when the CA is rotated.

    :param tls: the server's TLS settings, which accept the certificates of the CA.
    :param loaded: the settings at the start.
    :ivar current: the current settings.
    """

    def __init__(self, kube: Kube, tls: ServerTls, loaded: FrontProxy, *, log: Log) -> None:
        self._tls = tls
        self._log = log
        self._reflector: Reflector[ConfigMap] = Reflector(
            kube,
            CONFIG_MAPS,
            namespace=NAMESPACE,
            fields=f"metadata.name={NAME}",
            on_change=self._on_change,
            log=log,
        )
        self.current = loaded

    async def run(self) -> None:
        """Follow the ConfigMap until cancelled. Settings that cannot be used are logged, and the current ones stay."""
        await self._reflector.run()

    def _on_change(self, _key: Key, found: ConfigMap | None) -> None:
        try:
            changed = parse(found.data if found is not None else {})
            if changed == self.current:
                return
            self._tls.trust(changed.ca)
        except (ValueError, ssl.SSLError) as error:
            self._log.error("front-proxy settings refused, the earlier ones stay", error=str(error))
            return
        self.current = changed
        self._log.info("front-proxy settings replaced")


async def load(kube: Kube) -> FrontProxy:
    """Return the cluster's settings of the aggregation layer.

    :raises KubeError: the ConfigMap cannot be read.
    :raises ValueError: the ConfigMap has no CA.
    """
    return parse((await kube.get(CONFIG_MAPS, NAMESPACE, NAME)).data)


def parse(data: Mapping[str, str]) -> FrontProxy:
    """Return the settings in the ConfigMap's data.

    :raises ValueError: it has no CA, or a list cannot be decoded.
    """
    ca = data.get("requestheader-client-ca-file", "")
    if not ca:
        raise ValueError(
            f"ConfigMap {NAMESPACE}/{NAME} has no requestheader-client-ca-file; enable the aggregation layer"
        )
    return FrontProxy(
        ca=ca,
        names=_names(data.get("requestheader-allowed-names")),
        user_headers=_names(data.get("requestheader-username-headers")) or ("X-Remote-User",),
        group_headers=_names(data.get("requestheader-group-headers")) or ("X-Remote-Group",),
        extra_prefixes=_names(data.get("requestheader-extra-headers-prefix")) or ("X-Remote-Extra-",),
        uid_headers=_names(data.get("requestheader-uid-headers")),
    )


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(_list.decode(text)) if text else ()
