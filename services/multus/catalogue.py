"""The CNI configuration behind a network's name, looked for where multus looks: NAD, named file, directory, file.

Reads Kubernetes and the node's configuration directories, changes nothing. Which of them a pod gets is
:mod:`services.multus.observe`'s.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas import cni
from schemas.kube import NADS
from schemas.networks import RESOURCE_NAME
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError, NotFound
from services.multus import conflist, files
from services.multus.call import Call
from services.multus.conflist import Network
from services.multus.errors import CniError
from services.multus.settings import Config

PASSTHRU: Final = {"type": "passthru"}
"""First of the auxiliary chain: the other plugins want the result of one before them."""


class NoNetworkError(CniError):
    """There is no NAD of that name."""


@dataclass(frozen=True)
class Found:
    """A configuration.

    :ivar display: what network-status calls it (``namespace/nad``, or the CNI network's name).
    :ivar resource: of a device plugin; every attachment gets one device of it.
    """

    network: Network
    display: str
    resource: str | None = None


class Catalogue:
    """All networks that a node knows."""

    def __init__(self, kube: Kube, config: Config) -> None:
        self._kube = kube
        self._config = config

    async def primaries(self, call: Call) -> list[Found]:
        """The cluster network; where ``delegates`` stands in its place, those, the primary first.

        :raises CniError: there is none.
        """
        given = call.document
        name = self._config.cluster_network or given.get("clusterNetwork")
        if isinstance(name, str) and name:
            return [await self.named(name)]
        delegates: Any = self._config.delegates or given.get("delegates")
        if isinstance(delegates, list | tuple) and delegates:
            networks = [self._delegate(delegate) for delegate in delegates]
            return [Found(network, network.name) for network in networks]
        raise CniError(cni.Code.INVALID_CONFIG, "neither clusterNetwork nor delegates is configured")

    async def named(self, name: str) -> Found:
        """A network by the name that a configuration calls it.

        :raises CniError: there is none.
        """
        if "/" not in name:
            try:
                return await self.nad(self._config.multus_namespace, name)
            except NoNetworkError:
                named = files.named(self._config.named_dir, name)
                if named is not None:
                    return Found(named, named.name)
        network = files.at(Path(name))
        return Found(network, network.name)

    async def nad(self, namespace: str, name: str) -> Found:
        """A network by its NAD.

        :raises NoNetworkError: there is none. :raises CniError: its configuration is none.
        """
        try:
            nad = await self._kube.get(NADS, namespace, name)
        except NotFound as error:
            message = f"cannot find a network-attachment-definition ({name}) in namespace ({namespace})"
            raise NoNetworkError(cni.Code.INVALID_CONFIG, f"{message}: {error.message}") from error
        except KubeError as error:
            message = f"cannot get network-attachment-definition {namespace}/{name}: {error.message}"
            raise CniError(cni.Code.TRY_AGAIN_LATER, message) from error
        display, resource = f"{namespace}/{name}", nad.metadata.annotations.get(RESOURCE_NAME) or None
        if nad.spec.config.strip():
            try:
                network = conflist.parse(nad.spec.config, name=name, version=self._config.default_version)
            except CniError as error:
                raise error.prefixed(f"network-attachment-definition {display}") from error
            return Found(network, display, resource)
        found = files.named(self._config.named_dir, name)
        if found is None:
            message = f"network-attachment-definition {display} is empty and no file configures {name!r}"
            raise CniError(cni.Code.INVALID_CONFIG, message)
        return Found(found, display, resource)

    def auxiliary(self, call: Call) -> Found | None:
        """The auxiliary chain, if plugins have been dropped into its directory beside the cluster network's file.

        :raises CniError: one of them is none.
        """
        given = call.document
        name = self._config.auxiliary_chain or given.get("auxiliaryCNIChainName")
        cluster = self._config.cluster_network or given.get("clusterNetwork")
        if not (isinstance(name, str) and name):
            return None
        beside = Path(cluster).parent if isinstance(cluster, str) and "/" in cluster else self._config.conf_dir
        dropped = files.dropped(beside / name)
        if not dropped:
            return None
        text = msgspec.json.encode({"cniVersion": self._config.default_version, "name": name, "plugins": [PASSTHRU]})
        network = conflist.with_plugins(conflist.parse(text), [PASSTHRU, *dropped])
        return Found(network, name)

    def _delegate(self, document: Any) -> Network:
        try:
            return conflist.parse(msgspec.json.encode(document), version=self._config.default_version)
        except CniError as error:
            raise error.prefixed("delegates") from error
