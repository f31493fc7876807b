"""Observation for a call: the pod, and the CNI configurations of the networks that the pod requests.

Reads and changes nothing. Where a network's configuration comes from is decided in
:mod:`services.multus.pod.network_lookup`. Next: :mod:`services.multus.plan`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from schemas import cni
from schemas.kubernetes.networks import DEFAULT_NETWORK, NETWORKS, NetworkSelectionElement, parse_networks
from schemas.kubernetes.objects import Pod
from schemas.names import is_ordinal
from services.common.kube.client import Kube
from services.multus.cni import conflist
from services.multus.cni.call import CniCall, attributes_of, runtime_config_of, shared_runtime_config
from services.multus.cni.conflist import AttachmentAttributes, NetworkConfig
from services.multus.cni.errors import CniError
from services.multus.cni.network import refuse_plugins
from services.multus.config.settings import Config
from services.multus.plan import DesiredAttachment
from services.multus.pod.devices import PodDevices
from services.multus.pod.network_lookup import FoundNetwork, NetworkLookup
from services.multus.pod.reader import PodReader, pod_id
from services.multus.records.sandbox import AttachmentOrigin

READINESS_TIMEOUT: Final = 45.0
"""Seconds to wait for the readiness indicator file of the primary network, as upstream waits."""
READINESS_INTERVAL: Final = 0.25
"""Seconds between two checks for that file."""


class CallObserver:
    """Reads what a call depends on.

    :param kube: the Kubernetes client.
    :param config: the daemon's configuration.
    :param pods: reads pods.
    :param readiness_timeout: seconds to wait for the readiness indicator file.
    """

    def __init__(
        self,
        kube: Kube,
        config: Config,
        pods: PodReader,
        *,
        readiness_timeout: float = READINESS_TIMEOUT,
    ) -> None:
        self._config = config
        self._pods = pods
        self._readiness_timeout = readiness_timeout
        self._lookup = NetworkLookup(kube, config)

    async def wait_for_readiness_file(self) -> None:
        """Wait for the file that shows that the primary network is ready.

        :raises CniError: code 50, the file did not appear in time.
        """
        file = self._config.readiness_file
        until = time.monotonic() + self._readiness_timeout
        while file is not None and not file.exists():
            if time.monotonic() > until:
                message = f"readiness indicator file {file} does not exist: the primary network is not ready"
                raise CniError(cni.CniErrorCode.PLUGIN_NOT_AVAILABLE, message)
            await asyncio.sleep(READINESS_INTERVAL)

    async def list_desired(self, call: CniCall, pod: Pod) -> list[DesiredAttachment]:
        """Return the attachments of a new sandbox, in multus' order.

        The order is: cluster network, default networks, networks annotation, auxiliary chain.

        :param call: the call.
        :param pod: the sandbox's pod.
        :raises CniError: a network cannot be found, is not allowed, or has invalid attributes.
        """
        for element in elements_of(pod, DEFAULT_NETWORK):
            self._refuse_isolated(pod, element.namespace or self._config.multus_namespace)
        devices = PodDevices(self._config.pod_resources_socket, pod_id(pod))
        found = await self._primaries(call, pod, devices)
        # One after the other, because each attachment takes the next device of its resource.
        for look_up in self._secondary_lookups(call, pod, devices):
            found.append(await look_up())
        auxiliary = self._lookup.find_auxiliary(call)
        if auxiliary is not None:
            found.append(
                _desired(
                    auxiliary,
                    AttachmentOrigin.AUXILIARY,
                    AttachmentAttributes(shared_runtime_config(call.config_object)),
                )
            )
        # As upstream: an attachment without a name is numbered by its position in the whole list.
        return [replace(one, ifname=one.ifname or f"net{index}") for index, one in enumerate(found)]

    async def list_possible(self, call: CniCall) -> list[DesiredAttachment]:
        """Return the attachments that a sandbox without a record may have, as far as its pod still shows them.

        No devices are requested from the kubelet, because the pod may be gone.

        :param call: the call.
        :raises CniError: not even the cluster network can be found.
        """
        pod = await self._pods.find(call.pod) if call.pod is not None else None
        if pod is None:
            primaries = await self._lookup.find_primaries(call)
            found: list[DesiredAttachment | None] = [
                _desired(one, AttachmentOrigin.CLUSTER, call.attributes) for one in primaries
            ]
        else:
            found = [*await self._primaries(call, pod, None)]
            for look_up in self._secondary_lookups(call, pod, None):
                try:
                    found.append(await look_up())
                except Exception:
                    found.append(None)  # the attachments after it keep their numbers
        numbered = enumerate(found)
        return [replace(one, ifname=one.ifname or (f"net{i}" if i else call.ifname)) for i, one in numbered if one]

    def check_isolation(self, call: CniCall, pod: Pod) -> None:
        """Enforce namespace isolation for an attachment that is hot-plugged; upstream's controller does not.

        :param call: the call on ``/delegate``.
        :param pod: the call's pod.
        :raises CniError: code 7, the pod may not use the network, or neither the call nor the pod's annotation says
            which network it is.
        """
        if not self._config.isolation:
            return
        if call.network is not None:
            self._refuse_isolated(pod, call.network[0])
            return
        # Upstream's controller does not send the network. An element without a link name is attached as `net<i>`, so
        # every ordinal name may be its own.
        requested = [
            element
            for element in elements_of(pod, NETWORKS)
            if element.requested_interface == call.ifname
            or (element.requested_interface is None and is_ordinal(call.ifname))
        ]
        if not requested:
            message = f"{cni.ISOLATED}: no element of annotation {NETWORKS} of pod {pod_id(pod)} requests {call.ifname}"
            raise CniError(cni.CniErrorCode.INVALID_CONFIG, message)
        for element in requested:
            self._checked_namespace(pod, element)

    async def find_delegated(self, call: CniCall) -> NetworkConfig:
        """Return the network of a call on ``/delegate`` that names it without its configuration: a file of the node.

        :param call: the call.
        :raises CniError: there is no such network, or it has no configuration.
        """
        assert call.network is not None
        return (await self._lookup.find_nad(*call.network)).network

    def check_plugins(self, network: NetworkConfig, display: str) -> None:
        """Check that a network which a pod has chosen names only plugins and paths that it may.

        :param network: the network.
        :param display: its ``namespace/nad``, for the error.
        :raises CniError: code 7, one of them is not allowed.
        """
        try:
            refuse_plugins(network, self._config.allowed_plugins)
        except CniError as error:
            raise error.with_prefix(f"network {display}") from error
        if refused := self._config.node_paths.find_refused(network.plugins, network.name):
            raise CniError(cni.CniErrorCode.INVALID_CONFIG, f"network {display}: {refused}")

    async def cluster_network(self, call: CniCall) -> NetworkConfig:
        """Return the cluster network, without a pod's override.

        :param call: the call.
        :raises CniError: there is none.
        """
        return (await self._lookup.find_primaries(call))[0].network

    async def _primaries(self, call: CniCall, pod: Pod, devices: PodDevices | None) -> list[DesiredAttachment]:
        """Return the cluster network, or the pod's override of it, then further ``delegates`` of the configuration."""
        given = AttachmentAttributes(runtime_config_of(call.config_object))
        override = elements_of(pod, DEFAULT_NETWORK)
        if len(override) > 1:
            raise CniError(cni.CniErrorCode.INVALID_CONFIG, f"annotation {DEFAULT_NETWORK} names more than one network")
        if override:
            # As upstream: an override without a namespace is a NAD of multus' own namespace, not of the pod's.
            namespace = override[0].namespace or self._config.multus_namespace
            desired = await self._selected_network(
                override[0], namespace, AttachmentOrigin.CLUSTER, given.runtime, devices
            )
            return [replace(desired, ifname=call.ifname)]
        primary, *others = await self._lookup.find_primaries(call)
        first = replace(await self._with_device(primary, AttachmentOrigin.CLUSTER, given, devices), ifname=call.ifname)
        return [first, *(_desired(one, AttachmentOrigin.DEFAULT, given) for one in others)]

    def _secondary_lookups(
        self, call: CniCall, pod: Pod, devices: PodDevices | None
    ) -> list[Callable[[], Awaitable[DesiredAttachment]]]:
        """Return the lookups of the default networks and of the annotation's networks, in order.

        They are separate functions so that one that fails does not end the others.
        """
        base = shared_runtime_config(call.config_object)
        # One of upstream's checks compares the pod's name by mistake.
        system = pod.metadata.namespace in self._config.system_namespaces
        defaults = (
            [] if system else [partial(self._default_network, name, base) for name in self._config.default_networks]
        )
        elements = elements_of(pod, NETWORKS)
        return [*defaults, *(partial(self._annotated_network, pod, element, base, devices) for element in elements)]

    async def _default_network(self, name: str, base: Mapping[str, Any]) -> DesiredAttachment:
        return _desired(await self._lookup.find_by_name(name), AttachmentOrigin.DEFAULT, AttachmentAttributes(base))

    async def _annotated_network(
        self, pod: Pod, element: NetworkSelectionElement, base: Mapping[str, Any], devices: PodDevices | None
    ) -> DesiredAttachment:
        return await self._selected_network(
            element, self._checked_namespace(pod, element), AttachmentOrigin.NETWORKS, base, devices
        )

    def _checked_namespace(self, pod: Pod, element: NetworkSelectionElement) -> str:
        """Return the namespace of an annotation's network.

        :raises CniError: code 7, namespace isolation forbids it.
        """
        namespace = element.namespace or pod.metadata.namespace
        self._refuse_isolated(pod, namespace)
        return namespace

    def _refuse_isolated(self, pod: Pod, namespace: str) -> None:
        """Enforce namespace isolation, here alone.

        :raises CniError: code 7, the pod may not use networks of that namespace.
        """
        if self._config.isolation and namespace not in {pod.metadata.namespace, *self._config.global_namespaces}:
            message = f"{cni.ISOLATED}: pod {pod_id(pod)} may not use networks of namespace {namespace}"
            raise CniError(cni.CniErrorCode.INVALID_CONFIG, message)

    async def _selected_network(
        self,
        element: NetworkSelectionElement,
        namespace: str,
        origin: AttachmentOrigin,
        base: Mapping[str, Any],
        devices: PodDevices | None,
    ) -> DesiredAttachment:
        found = await self._lookup.find_nad(namespace, element.name)
        self.check_plugins(found.network, found.display)
        requested = attributes_of(element)
        attributes = replace(requested, runtime={**base, **requested.runtime})
        desired = await self._with_device(found, origin, attributes, devices)
        gateways = None if element.default_route is None else tuple(element.default_route)
        return replace(desired, ifname=element.requested_interface or "", gateways=gateways)

    async def _with_device(
        self,
        found: FoundNetwork,
        origin: AttachmentOrigin,
        attributes: AttachmentAttributes,
        devices: PodDevices | None,
    ) -> DesiredAttachment:
        desired = _desired(found, origin, attributes)
        if found.resource is None or devices is None:
            return desired
        device = await devices.take(found.resource)
        if device is None:
            # As upstream: `deviceID` of the annotation counts only where the kubelet has assigned no device.
            device = attributes.runtime.get("deviceID")
            if device is None:
                message = f"network {found.display} needs a device of {found.resource}: the pod has no unused one"
                raise CniError(cni.CniErrorCode.INVALID_CONFIG, message)
        attributes = replace(attributes, runtime={**attributes.runtime, "deviceID": device})
        return replace(
            desired,
            network=conflist.with_device(found.network, device),
            attributes=attributes,
            # Without the device, so that a repeated request has the same fingerprint.
            identity=found.network,
            device=(found.resource, device),
        )


def elements_of(pod: Pod, annotation: str) -> list[NetworkSelectionElement]:
    """Return the networks that an annotation requests.

    :param pod: the pod.
    :param annotation: the annotation's key.
    :raises CniError: code 7, the annotation is malformed.
    """
    try:
        return parse_networks(pod.metadata.annotations.get(annotation))
    except ValueError as error:
        raise CniError(cni.CniErrorCode.INVALID_CONFIG, f"annotation {annotation}: {error}") from error


def find_nad_name(pod: Pod, ifname: str) -> str:
    """Return ``namespace/nad`` of the network that the annotation requests for a link; empty if it names none.

    A call on ``/delegate`` has the CNI network's name only.

    :param pod: the pod.
    :param ifname: the link's name.
    """
    try:
        elements = elements_of(pod, NETWORKS)
    except CniError:
        return ""
    names = (
        f"{one.namespace or pod.metadata.namespace}/{one.name}" for one in elements if one.requested_interface == ifname
    )
    return next(names, "")


def _desired(found: FoundNetwork, origin: AttachmentOrigin, attributes: AttachmentAttributes) -> DesiredAttachment:
    return DesiredAttachment("", found.network, found.display, origin, attributes)
