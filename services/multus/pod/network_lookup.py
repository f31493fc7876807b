"""Lookup of the CNI configuration of a network, in multus' order: NAD, file with that network name, directory, file.

Reads Kubernetes and the node's configuration directories and changes nothing. Which networks a pod gets is decided in
:mod:`services.multus.observe`. Next: :mod:`services.multus.pod.config_files`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas import cni
from schemas.inputs import Edge
from schemas.kubernetes.networks import RESOURCE_NAME
from schemas.kubernetes.objects import NADS
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError, NotFound
from services.multus.cni import conflist
from services.multus.cni.call import CniCall
from services.multus.cni.conflist import NetworkConfig
from services.multus.cni.errors import CniError
from services.multus.config.settings import Config
from services.multus.pod import config_files

PASSTHRU: Final = {"type": "passthru"}
"""The first plugin of the auxiliary chain: the plugins after it need the result of one before them."""


class NoNetworkError(CniError):
    """There is no NAD of the requested name."""


@dataclass(frozen=True)
class FoundNetwork:
    """A network that was found.

    :ivar network: its CNI configuration.
    :ivar display: its name in network-status (``namespace/nad``, or the CNI network's name).
    :ivar resource: the resource of a device plugin; every attachment gets one device of it. ``None``: no device.
    """

    network: NetworkConfig
    display: str
    resource: str | None = None


class NetworkLookup:
    """Finds the networks that are available on the node.

    :param kube: the Kubernetes client.
    :param config: the daemon's configuration.
    """

    def __init__(self, kube: Kube, config: Config) -> None:
        self._kube = kube
        self._config = config

    async def find_primaries(self, call: CniCall) -> list[FoundNetwork]:
        """Return the cluster network, or the ``delegates`` that replace it, the primary first.

        :param call: the call; its configuration may name the cluster network.
        :raises CniError: neither is configured, or one cannot be found.
        """
        given = call.config_object
        # As upstream, the daemon's file overrides the call's configuration.
        name = self._config.cluster_network or given.get("clusterNetwork")
        if isinstance(name, str) and name:
            return [await self.find_by_name(name)]
        delegates: Any = self._config.delegates or given.get("delegates")
        if isinstance(delegates, list | tuple) and delegates:
            networks = [self._delegate(delegate) for delegate in delegates]
            return [FoundNetwork(network, network.name) for network in networks]
        raise CniError(cni.CniErrorCode.INVALID_CONFIG, "neither clusterNetwork nor delegates is configured")

    async def find_by_name(self, name: str) -> FoundNetwork:
        """Return a network by the name that a configuration gives it.

        :param name: a NAD's name, a CNI network's name, or the path of a directory or file.
        :raises CniError: there is no such network.
        """
        # As upstream: a name with a slash is a path.
        if "/" not in name:
            try:
                return await self.find_nad(self._config.multus_namespace, name)
            except NoNetworkError:
                named = config_files.find_named(self._config.named_dir, name)
                if named is not None:
                    return FoundNetwork(named, named.name)
        network = config_files.load(Path(name))
        return FoundNetwork(network, network.name)

    async def find_nad(self, namespace: str, name: str) -> FoundNetwork:
        """Return a network by its NAD.

        :param namespace: the NAD's namespace.
        :param name: the NAD's name.
        :raises NoNetworkError: there is no such NAD.
        :raises CniError: its configuration is invalid, or the API server did not answer.
        """
        try:
            nad = await self._kube.get(NADS, namespace, name)
        except NotFound as error:
            message = f"cannot find a network-attachment-definition ({name}) in namespace ({namespace})"
            raise NoNetworkError(cni.CniErrorCode.INVALID_CONFIG, f"{message}: {error.message}") from error
        except KubeError as error:
            message = f"cannot get network-attachment-definition {namespace}/{name}: {error.message}"
            raise CniError(cni.CniErrorCode.TRY_AGAIN_LATER, message) from error
        display, resource = f"{namespace}/{name}", nad.metadata.annotations.get(RESOURCE_NAME) or None
        if nad.spec.config.strip():
            try:
                network = conflist.parse(nad.spec.config, name=name, version=self._config.default_version)
            except CniError as error:
                raise error.with_prefix(f"network-attachment-definition {display}") from error
            return FoundNetwork(network, display, resource)
        found = config_files.find_named(self._config.named_dir, name)
        if found is None:
            message = f"network-attachment-definition {display} {cni.NO_CONFIGURATION} {name!r} on this node"
            raise CniError(cni.CniErrorCode.INVALID_CONFIG, message)
        return FoundNetwork(found, display, resource)

    def find_auxiliary(self, call: CniCall) -> FoundNetwork | None:
        """Return the auxiliary chain if its directory, which is beside the cluster network's file, holds plugins.

        :param call: the call; its configuration may name the chain.
        :returns: the chain; ``None`` when it is not configured or has no plugins.
        :raises CniError: a file in the directory is not a configuration.
        """
        given = call.config_object
        name = self._config.auxiliary_chain or given.get("auxiliaryCNIChainName")
        cluster = self._config.cluster_network or given.get("clusterNetwork")
        if not (isinstance(name, str) and name):
            return None
        beside = Path(cluster).parent if isinstance(cluster, str) and "/" in cluster else self._config.conf_dir
        plugins = config_files.load_directory(beside / name)
        if not plugins:
            return None
        text = msgspec.json.encode({"cniVersion": self._config.default_version, "name": name, "plugins": [PASSTHRU]})
        network = conflist.with_plugins(conflist.parse(text, edge=Edge.FILE), [PASSTHRU, *plugins])
        return FoundNetwork(network, name)

    def _delegate(self, document: Any) -> NetworkConfig:
        try:
            text = msgspec.json.encode(document)
            return conflist.parse(text, version=self._config.default_version, edge=Edge.FILE)
        except CniError as error:
            raise error.with_prefix("delegates") from error
