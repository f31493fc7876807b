"""The daemon's configuration: environment variables, and multus' own keys in ``daemon-config.json``.

The file has upstream's keys, so that an operator can use an existing one. Where both set a value, the file wins,
because the node's other multus components read it too. Next: :mod:`services.multus.config.logs`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from services.common.domain.plugin_types import AllowedPlugins, parse_plugin_types
from services.common.node.files import read_bounded
from services.common.node.paths import resolve_under
from services.common.runtime.settings import CommonSettings, SettingsError
from services.multus.config import daemon_config
from services.multus.config.daemon_config import DaemonConfig, LogOptions
from services.multus.config.node_paths import NodePaths

SHIM_SOCKET_DIR: Final = "/run/multus/"
"""The directory where a shim expects the socket if its configuration does not name one (upstream's default)."""

DEFAULT_CONNECTION_LIMIT: Final = 32
"""How many calls run at once unless ``connectionLimit`` is set. Each may run a plugin of some MiB, and more calls at
once are no faster (multus-cni#1346)."""


CALL_TIMEOUT: Final = 90.0
"""Seconds that a call may take, with 20 s to undo a failed one. The kubelet waits 2 minutes for the runtime to stop a
sandbox, and 4 minutes to run one (runtimeRequestTimeout); the shim waits 3 minutes."""


class Settings(CommonSettings, frozen=True, kw_only=True):
    """Environment variables of the role."""

    socket_dir: Annotated[str, msgspec.Meta(description="directory (mode 0700) of the daemon's socket multus.sock")] = (
        "/run/multus"
    )
    socket_users: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0)], ...],
        msgspec.Meta(
            description="comma-separated user ids besides 0 whose processes may call the socket, such as the one that "
            "a rootless container runtime has outside of its user namespace"
        ),
    ] = ()
    cni_conf_dir: Annotated[
        str, msgspec.Meta(description="the runtime's CNI configuration directory; 00-multus.conf is written there")
    ] = "/etc/cni/net.d"
    cni_bin_dir: Annotated[
        str, msgspec.Meta(description="directory of CNI plugins; the shim hotnic-multus is installed there")
    ] = "/opt/cni/bin"
    cni_state_dir: Annotated[
        str, msgspec.Meta(description="directory of the records of every sandbox's attachments")
    ] = "/var/lib/cni/multus"
    multus_config: Annotated[
        str | None, msgspec.Meta(description="path of a daemon-config.json in multus' own format; unset: defaults")
    ] = None
    host_root: Annotated[
        str,
        msgspec.Meta(
            description="where the node's file system is mounted: its network namespaces are there, plugins run in it"
        ),
    ] = "/"
    plugin_timeout: Annotated[
        float, msgspec.Meta(description="seconds that one execution of a CNI plugin may take", gt=0, le=600)
    ] = 60.0
    call_timeout: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=3600)] | None,
        msgspec.Meta(
            description="seconds that a call may take with all of its plugins, from its receipt; a failed ADD then has "
            "20 s more to undo what it has made; unset: 90, or HOTNIC_PLUGIN_TIMEOUT if that is longer"
        ),
    ] = None
    plugin_memory: Annotated[
        int, msgspec.Meta(description="MiB of memory that one execution of a CNI plugin may use", ge=16)
    ] = 1024
    plugin_pids: Annotated[
        int, msgspec.Meta(description="processes and threads that one execution of a CNI plugin may have", ge=8)
    ] = 1024
    plugin_cgroup: Annotated[
        str | None,
        msgspec.Meta(
            description="cgroup (version 2), as in /proc/self/cgroup, below which each execution of a CNI plugin has "
            "its own; none: no such cgroups; unset: the daemon's own cgroup"
        ),
    ] = None
    cri_socket: Annotated[
        str | None,
        msgspec.Meta(
            description="the container runtime's socket; attachments of sandboxes it no longer has are deleted"
        ),
    ] = None
    pod_resources_socket: Annotated[
        str, msgspec.Meta(description="the kubelet's socket that reports which devices a pod has")
    ] = "/var/lib/kubelet/pod-resources/kubelet.sock"
    device_info_dir: Annotated[
        str, msgspec.Meta(description="directory where device plugins and CNI plugins describe devices")
    ] = "/var/run/k8s.cni.cncf.io/devinfo"
    plugin_types: Annotated[
        str | None,
        msgspec.Meta(
            description="comma-separated CNI plugin types that networks of pods may name, those of IPAM plugins "
            "included; unset: every type but multus' own"
        ),
    ] = None
    network_data_dirs: Annotated[
        tuple[Annotated[str, msgspec.Meta(pattern="^/")], ...],
        msgspec.Meta(
            description="comma-separated directories of the node; a dataDir that networks of pods name (host-local) is "
            "below one of them; unset: anywhere but in directories of multus, of CNI, of the container runtime and of "
            "the system"
        ),
    ] = ()
    shim: Annotated[
        str | None,
        msgspec.Meta(description="file to install as the shim, such as a static one; unset: the one for Python 3"),
    ] = None

    @property
    def call_seconds(self) -> float:
        """The seconds that a call may take."""
        return self.call_timeout or max(CALL_TIMEOUT, self.plugin_timeout)


@dataclass(frozen=True)
class Config:
    """The merged configuration that the daemon runs with. Paths are as the daemon sees them.

    :ivar socket_dir: directory of the daemon's socket.
    :ivar shim_socket_dir: the same directory as the shim sees it, on the host.
    :ivar config_file: a finished configuration to copy for the runtime; ``None``: one is generated.
    :ivar autoconfig_dir: directory of the primary CNI configuration.
    :ivar master: file name of the primary CNI configuration; ``None``: the first one.
    :ivar conf_dir: the runtime's CNI configuration directory.
    :ivar bin_dir: directory of CNI plugins.
    :ivar cni_dir: directory of the records.
    :ivar named_dir: directory in which networks are found by name.
    :ivar chroot_dir: the node's root, in which plugins are executed; ``None``: the daemon's own root.
    :ivar host_root: where the node's file system is mounted.
    :ivar cni_version: CNI version of the generated configuration; ``None``: the primary's.
    :ivar readiness_file: file that shows that the primary network is ready; ``None``: it counts as ready.
    :ivar isolation: whether pods may use networks of their own and the global namespaces only.
    :ivar global_namespaces: namespaces whose networks every pod may use.
    :ivar system_namespaces: namespaces whose pods get no default networks.
    :ivar multus_namespace: namespace of the cluster network's and the default networks' NADs.
    :ivar cluster_network: the pod's primary network; ``None``: the primary CNI configuration.
    :ivar default_networks: networks that every pod gets.
    :ivar delegates: CNI configurations in place of a cluster network, the primary first.
    :ivar auxiliary_chain: name of the auxiliary chain; ``None``: the call may name one.
    :ivar name: network name of the generated configuration; ``None``: the default.
    :ivar type: plugin type of the generated configuration; ``None``: the shim.
    :ivar override_name: whether the generated configuration has the primary's network name.
    :ivar capabilities: capabilities of the generated configuration in addition to the primary's.
    :ivar kubeconfig: path of a kubeconfig; ``None``: the standard lookup.
    :ivar connection_limit: how many calls may run at once.
    :ivar metrics_port: TCP port of ``/metrics``; ``None``: none.
    :ivar pod_resources_socket: path of the kubelet's pod-resources socket.
    :ivar device_info_dir: directory of device information files.
    :ivar allowed_plugins: the plugins that the networks of pods may name.
    :ivar node_paths: the directories that they may name.
    :ivar shim_log: log keys of the generated configuration, for the shim.
    :ivar log_file: file that gets a copy of the daemon's log; ``None``: none.
    :ivar log_level: the daemon's log level; ``None``: the environment's.
    :ivar log_options: rotation of ``log_file``.
    """

    socket_dir: Path
    shim_socket_dir: str
    config_file: Path | None
    autoconfig_dir: Path
    master: str | None
    conf_dir: Path
    bin_dir: Path
    cni_dir: Path
    named_dir: Path
    chroot_dir: Path | None
    host_root: str
    cni_version: str | None
    readiness_file: Path | None
    isolation: bool
    global_namespaces: frozenset[str]
    system_namespaces: frozenset[str]
    multus_namespace: str
    cluster_network: str | None
    default_networks: tuple[str, ...]
    delegates: tuple[dict[str, Any], ...]
    auxiliary_chain: str | None
    name: str | None
    type: str | None
    override_name: bool
    capabilities: frozenset[str]
    kubeconfig: str | None
    connection_limit: int
    metrics_port: int | None
    pod_resources_socket: str
    device_info_dir: Path
    allowed_plugins: AllowedPlugins
    node_paths: NodePaths
    shim_log: dict[str, Any]
    log_file: str | None
    log_level: str | None
    log_options: LogOptions

    @property
    def default_version(self) -> str:
        """The CNI version of a configuration that has none."""
        return self.cni_version or "1.0.0"

    @property
    def installed_plugins(self) -> Path:
        """The directory of CNI plugins as the daemon sees it; ``bin_dir`` is its path where plugins run."""
        # The node may have a link here.
        return resolve_under(self.chroot_dir, str(self.bin_dir)) if self.chroot_dir else self.bin_dir


def read_config(settings: Settings) -> tuple[Config, list[str]]:
    """Read ``daemon-config.json`` and merge it with the environment variables.

    :param settings: the environment variables.
    :returns: the merged configuration, and a warning for each key that has no effect.
    :raises SettingsError: the file cannot be read, or has an invalid or refused value.
    """
    given, warnings = DaemonConfig(), list[str]()
    if settings.multus_config:
        try:
            given, warnings = daemon_config.parse(read_bounded(Path(settings.multus_config)))
        except (OSError, ValueError) as error:
            raise SettingsError("HOTNIC_MULTUS_CONFIG", f"{settings.multus_config}: {error}") from error
    return _merge(settings, given), warnings


def _merge(settings: Settings, given: DaemonConfig) -> Config:
    socket_dir = given.socket_dir or settings.socket_dir
    conf_dir = given.cni_config_dir or settings.cni_conf_dir
    log = {"logFile": given.log_file, "logLevel": given.log_level, "logToStderr": given.log_to_stderr}
    # As upstream: a list replaces `default`, which must be repeated in it.
    named = (given.global_namespaces or "default").split(",")
    # The paths in plugins' configurations are the node's, so plugins run in the node's root wherever that is mounted.
    root = given.chroot_dir or settings.host_root
    chroot_dir = Path(root) if root != "/" else None
    level = daemon_config.LEVELS[given.log_level.lower()] if given.log_level else None
    # As upstream: the file's socketDir is the daemon's view and not the host's path.
    shim_socket_dir = given.daemon_socket_dir or (SHIM_SOCKET_DIR if given.socket_dir else settings.socket_dir)
    autoconfig_dir = given.multus_autoconfig_dir or conf_dir
    bin_dir = given.bin_dir or settings.cni_bin_dir
    cni_dir = given.cni_dir or settings.cni_state_dir
    # Not all of `cniDir`: upstream's may be the parent of host-local's own directory.
    named_dirs = [socket_dir, shim_socket_dir, conf_dir, autoconfig_dir, given.conf_dir, bin_dir]
    named_dirs += [f"{cni_dir}/sandboxes", f"{cni_dir}/results", settings.device_info_dir]
    # Some of them are the daemon's view, below the node's root, such as the chart's confDir.
    own = tuple(path.removeprefix(root.rstrip("/")) for path in named_dirs)
    return Config(
        socket_dir=Path(socket_dir),
        shim_socket_dir=shim_socket_dir,
        config_file=Path(given.multus_config_file) if given.multus_config_file != "auto" else None,
        autoconfig_dir=Path(autoconfig_dir),
        master=given.multus_master_cni,
        conf_dir=Path(conf_dir),
        bin_dir=Path(bin_dir),
        cni_dir=Path(cni_dir),
        named_dir=Path(given.conf_dir),
        chroot_dir=chroot_dir,
        # Upstream's manifest sets only chrootDir, and the namespaces are below it as well.
        host_root=str(chroot_dir) if chroot_dir and settings.host_root == "/" else settings.host_root,
        cni_version=given.cni_version,
        readiness_file=Path(given.readiness_indicator_file) if given.readiness_indicator_file else None,
        isolation=given.namespace_isolation,
        global_namespaces=frozenset(name.strip() for name in named if name.strip()),
        system_namespaces=frozenset(given.system_namespaces),
        multus_namespace=given.multus_namespace,
        cluster_network=given.cluster_network,
        default_networks=tuple(given.default_networks),
        delegates=given.delegates if not given.cluster_network else (),
        auxiliary_chain=given.auxiliary_chain or None,
        name=given.name,
        type=given.type,
        override_name=given.override_network_name,
        capabilities=frozenset(name for name, on in given.capabilities.items() if on),
        kubeconfig=settings.kubeconfig or given.kubeconfig,
        connection_limit=given.connection_limit or DEFAULT_CONNECTION_LIMIT,
        metrics_port=given.metrics_port,
        pod_resources_socket=settings.pod_resources_socket,
        device_info_dir=Path(settings.device_info_dir),
        allowed_plugins=parse_plugin_types(settings.plugin_types),
        node_paths=NodePaths(own, settings.network_data_dirs, chroot_dir),
        shim_log={key: value for key, value in log.items() if value is not None},
        log_file=given.log_file,
        log_level=level,
        log_options=given.log_options,
    )
