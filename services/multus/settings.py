"""What the daemon is told: environment variables for the process, ``daemon-config.json`` for multus' own keys.

The file's keys are upstream's (an operator brings the one that is there); where both say something, the file wins,
because it is what the node's other multus parts read. Next: :mod:`services.multus.autoconfig`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from services.common.settings import Common, SettingsError
from services.multus import daemon_config
from services.multus.daemon_config import DaemonConfig, LogOptions

SHIM_SOCKET_DIR: Final = "/run/multus/"
"""Where a shim looks that is not told otherwise (upstream's default)."""


class Settings(Common, frozen=True, kw_only=True):
    """Environment variables of the role."""

    socket_dir: Annotated[str, msgspec.Meta(description="directory (mode 0700) of the daemon's socket multus.sock")] = (
        "/run/multus"
    )
    cni_conf_dir: Annotated[
        str, msgspec.Meta(description="the runtime's CNI configuration directory; 00-multus.conf is written there")
    ] = "/etc/cni/net.d"
    cni_bin_dir: Annotated[
        str, msgspec.Meta(description="directory of CNI plugins; the shim hotnic-multus is put there")
    ] = "/opt/cni/bin"
    cni_state_dir: Annotated[
        str, msgspec.Meta(description="directory of the records of what was attached to which sandbox")
    ] = "/var/lib/cni/multus"
    multus_config: Annotated[
        str | None, msgspec.Meta(description="path of a daemon-config.json in multus' own format; unset: defaults")
    ] = None
    host_root: Annotated[
        str, msgspec.Meta(description="where the node's file system is mounted, for network namespaces")
    ] = "/"
    plugin_timeout: Annotated[
        float, msgspec.Meta(description="seconds that one execution of a CNI plugin may take", gt=0, le=600)
    ] = 60.0
    cri_socket: Annotated[
        str | None,
        msgspec.Meta(description="the container runtime's socket: records of sandboxes that it lost are undone"),
    ] = None
    pod_resources_socket: Annotated[
        str, msgspec.Meta(description="the kubelet's socket that says which devices a pod was given")
    ] = "/var/lib/kubelet/pod-resources/kubelet.sock"
    device_info_dir: Annotated[
        str, msgspec.Meta(description="where device plugins and CNI plugins leave what they know of a device")
    ] = "/var/run/k8s.cni.cncf.io/devinfo"
    shim: Annotated[
        str | None,
        msgspec.Meta(description="file to install as the shim, such as a static one; unset: the one for Python 3"),
    ] = None


@dataclass(frozen=True)
class Config:
    """Both together: what the daemon runs by. Paths are as the daemon sees them.

    :ivar shim_socket_dir: the socket's directory as the shim sees it, on the host.
    :ivar config_file: copied for the runtime as it is, in place of a generated one.
    :ivar chroot_dir: the node's root, in which plugins are executed; ``None``: where the daemon is.
    :ivar cluster_network: the pod's primary network; ``None``: found in the primary CNI configuration.
    :ivar cni_version: of the written configuration; ``None``: the primary's.
    :ivar delegates: CNI configurations in place of a cluster network, the primary first.
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
    connection_limit: int | None
    metrics_port: int | None
    pod_resources_socket: str
    device_info_dir: Path
    shim_log: dict[str, Any]
    log_file: str | None
    log_level: str | None
    log_options: LogOptions

    @property
    def default_version(self) -> str:
        """The CNI version of a configuration that names none."""
        return self.cni_version or "1.0.0"


def read(settings: Settings) -> tuple[Config, list[str]]:
    """The configuration, and a sentence about each key that has no effect here.

    :raises SettingsError: the file cannot be read, holds a wrong value, or asks for what is refused.
    """
    given, said = DaemonConfig(), list[str]()
    if settings.multus_config:
        try:
            given, said = daemon_config.parse(Path(settings.multus_config).read_bytes())
        except (OSError, ValueError) as error:
            raise SettingsError("HOTNIC_MULTUS_CONFIG", f"{settings.multus_config}: {error}") from error
    return _merged(settings, given), said


def _merged(settings: Settings, given: DaemonConfig) -> Config:
    socket_dir = given.socket_dir or settings.socket_dir
    conf_dir = given.cni_config_dir or settings.cni_conf_dir
    log = {"logFile": given.log_file, "logLevel": given.log_level, "logToStderr": given.log_to_stderr}
    named = (given.global_namespaces or "default").split(",")
    chroot_dir = Path(given.chroot_dir) if given.chroot_dir and given.chroot_dir != "/" else None
    level = daemon_config.LEVELS[given.log_level.lower()] if given.log_level else None
    return Config(
        socket_dir=Path(socket_dir),
        # As upstream's: a socketDir of the file is the daemon's own view, which says nothing about the host's.
        shim_socket_dir=given.daemon_socket_dir or (SHIM_SOCKET_DIR if given.socket_dir else settings.socket_dir),
        config_file=Path(given.multus_config_file) if given.multus_config_file != "auto" else None,
        autoconfig_dir=Path(given.multus_autoconfig_dir or conf_dir),
        master=given.multus_master_cni,
        conf_dir=Path(conf_dir),
        bin_dir=Path(given.bin_dir or settings.cni_bin_dir),
        cni_dir=Path(given.cni_dir or settings.cni_state_dir),
        named_dir=Path(given.conf_dir),
        chroot_dir=chroot_dir,
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
        connection_limit=given.connection_limit,
        metrics_port=given.metrics_port,
        pod_resources_socket=settings.pod_resources_socket,
        device_info_dir=Path(settings.device_info_dir),
        shim_log={key: value for key, value in log.items() if value is not None},
        log_file=given.log_file,
        log_level=level,
        log_options=given.log_options,
    )
