"""Who calls: the aggregation layer proves itself by its client certificate and names the user in headers.

Source: Kubernetes "Configure the aggregation layer": ConfigMap ``kube-system/extension-apiserver-authentication``.
A certificate cannot be demanded of everyone, because the aggregator's availability probe comes without one.
"""

from collections.abc import Mapping, Sequence
from urllib.parse import unquote

import msgspec

from schemas.kube import CONFIG_MAPS
from services.common.http.server import StatusError
from services.common.kube.client import Kube

NAMESPACE, NAME = "kube-system", "extension-apiserver-authentication"


class Identity(msgspec.Struct, frozen=True):
    """The user behind a request, as the aggregation layer authenticated them.

    :ivar extra: what the authenticator said of them besides, for the authorizer.
    """

    user: str
    groups: tuple[str, ...]
    extra: dict[str, tuple[str, ...]] = {}


class FrontProxy(msgspec.Struct, frozen=True):
    """What makes a caller the aggregation layer.

    :ivar ca: PEM bundle that its certificate must chain to. :ivar names: allowed common names; empty allows all.
    """

    ca: str
    names: tuple[str, ...]
    user_headers: tuple[str, ...]
    group_headers: tuple[str, ...]
    extra_prefixes: tuple[str, ...] = ("X-Remote-Extra-",)

    def identify(self, peer_name: str | None, headers: Mapping[str, str], groups: Sequence[str]) -> Identity:
        """The user of a request.

        :param peer_name: common name of the verified peer certificate; ``None`` when none was shown.
        :param groups: the values of the group headers, in order.
        :raises StatusError: 401; the caller is not the aggregation layer, or names no user.
        """
        if peer_name is None:
            raise StatusError(
                401, "Unauthorized", "no verified client certificate: call through the Kubernetes API server"
            )
        if self.names and peer_name not in self.names:
            raise StatusError(
                401, "Unauthorized", f"client certificate of {peer_name!r} is not the aggregation layer's"
            )
        user = next((headers[name] for name in self.user_headers if headers.get(name)), None)
        if user is None or not groups:
            raise StatusError(401, "Unauthorized", "the aggregation layer named no user or no group")
        return Identity(user, tuple(groups), self._extra(headers))

    def _extra(self, headers: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for header, value in headers.items():
            for prefix in self.extra_prefixes:
                if header.lower().startswith(prefix.lower()):
                    # Header names have no case; bytes that a name cannot have are escaped.
                    key = unquote(header[len(prefix) :].lower())
                    found[key] = (*found.get(key, ()), value)
        return found


async def load(kube: Kube) -> FrontProxy:
    """Read the cluster's settings.

    :raises KubeError: the ConfigMap cannot be read. :raises ValueError: it lacks the CA.
    """
    data = (await kube.get(CONFIG_MAPS, NAMESPACE, NAME)).data
    ca = data.get("requestheader-client-ca-file", "")
    if not ca:
        raise ValueError(
            f"ConfigMap {NAMESPACE}/{NAME} has no requestheader-client-ca-file: is the aggregation layer on?"
        )
    return FrontProxy(
        ca=ca,
        names=_names(data.get("requestheader-allowed-names")),
        user_headers=_names(data.get("requestheader-username-headers")) or ("X-Remote-User",),
        group_headers=_names(data.get("requestheader-group-headers")) or ("X-Remote-Group",),
        extra_prefixes=_names(data.get("requestheader-extra-headers-prefix")) or ("X-Remote-Extra-",),
    )


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(msgspec.json.decode(text, type=list[str])) if text else ()
