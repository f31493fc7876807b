"""``daemon-config.json``, multus' own configuration file: decoding and checks of its keys.

Every key either works, or makes the daemon refuse to start, or causes a warning that it has no effect.
Source: multus-cni v4, which reads this file in three places (daemon, generator, every request).
Next: :mod:`services.multus.config.settings`, which merges it with the environment variables.
"""

from typing import Any, Final

import msgspec

from schemas.inputs import Edge, InputDecoder


class LogOptions(msgspec.Struct, frozen=True, rename="camel"):
    """How ``logFile`` is rotated: sizes in megabytes."""

    max_size: int = 100
    max_backups: int = 5
    max_age: int | None = None
    compress: bool | None = None


class PerNodeCertificate(msgspec.Struct, frozen=True, rename="camel"):
    """Upstream's own client certificate for the node."""

    enabled: bool = False


class DaemonConfig(msgspec.Struct, frozen=True, rename="camel"):
    """The keys that upstream supports."""

    # The default paths and namespaces are upstream's.
    cni_version: str | None = None
    multus_config_file: str = "auto"
    multus_autoconfig_dir: str | None = None
    multus_master_cni: str | None = msgspec.field(default=None, name="multusMasterCNI")
    cni_config_dir: str | None = None
    bin_dir: str | None = None
    cni_dir: str | None = None
    conf_dir: str = "/etc/cni/multus/net.d"
    socket_dir: str | None = None
    daemon_socket_dir: str | None = None
    chroot_dir: str | None = None
    readiness_indicator_file: str | None = msgspec.field(default=None, name="readinessindicatorfile")
    namespace_isolation: bool = False
    global_namespaces: str | None = None
    system_namespaces: tuple[str, ...] = ("kube-system",)
    multus_namespace: str = "kube-system"
    cluster_network: str | None = None
    default_networks: tuple[str, ...] = ()
    delegates: tuple[dict[str, Any], ...] = ()
    auxiliary_chain: str | None = msgspec.field(default=None, name="auxiliaryCNIChainName")
    name: str | None = None
    type: str | None = None
    override_network_name: bool = False
    force_cni_version: bool = msgspec.field(default=False, name="forceCNIVersion")
    capabilities: dict[str, bool] = {}
    runtime_config: dict[str, Any] | None = None
    kubeconfig: str | None = None
    connection_limit: int | None = None
    metrics_port: int | None = None
    enable_pprof: bool = False
    per_node_certificate: PerNodeCertificate = PerNodeCertificate()
    retry_delete_on_error: bool | None = None
    log_file: str | None = None
    log_level: str | None = None
    log_to_stderr: bool | None = None
    log_options: LogOptions = LogOptions()


LEVELS: Final = {"debug": "debug", "verbose": "info", "error": "error", "panic": "error"}
"""hotnic's log level for each of multus' levels."""

_keys: Final = InputDecoder(Edge.FILE, dict[str, msgspec.Raw])
_decoder: Final = InputDecoder(Edge.FILE, DaemonConfig)
_known: Final = {field.encode_name for field in msgspec.structs.fields(DaemonConfig)}


def parse(text: bytes) -> tuple[DaemonConfig, list[str]]:
    """Decode and check the file.

    :param text: the file's content.
    :returns: the keys, and a warning for each key that has no effect.
    :raises ValueError: the file cannot be decoded, or has a key or value that is refused.
    """
    document = _keys.decode(text)
    given = _decoder.decode(text)
    reason = _refused(given)
    if reason:
        raise ValueError(reason)
    return given, _without_effect(given) + [
        f"{key} is not a key of multus and is ignored" for key in sorted(document.keys() - _known)
    ]


def _refused(given: DaemonConfig) -> str:
    if given.force_cni_version:
        return (
            "forceCNIVersion would rewrite the primary CNI's own file, which belongs to that CNI: remove the key "
            "(results are converted to the version of the runtime's configuration)"
        )
    if given.per_node_certificate.enabled:
        return (
            "perNodeCertificate requests a certificate for the node, which this daemon does not support: "
            "remove the key, and give the daemon a service account or a kubeconfig"
        )
    if given.connection_limit is not None and given.connection_limit < 1:
        return f"connectionLimit {given.connection_limit} is not a positive number of connections"
    if given.metrics_port is not None and not 0 < given.metrics_port < 65536:
        return f"metricsPort {given.metrics_port} is not a TCP port"
    if given.log_level is not None and given.log_level.lower() not in LEVELS:
        return f"logLevel {given.log_level!r} is none of {', '.join(LEVELS)}"
    return ""


def _without_effect(given: DaemonConfig) -> list[str]:
    warnings = []
    if given.enable_pprof:
        warnings.append("enablePprof is ignored: it is a profiler for Go programs")
    if given.retry_delete_on_error is not None:
        warnings.append("retryDeleteOnError is ignored: a failed DEL always stays in the record and is retried")
    if given.log_to_stderr is False:
        warnings.append(
            "logToStderr false is ignored by the daemon, which always logs to standard error; the shim obeys it"
        )
    if given.log_options.max_age is not None or given.log_options.compress is not None:
        warnings.append("logOptions.maxAge and .compress are ignored: the file is rotated by maxSize and maxBackups")
    if given.runtime_config:
        warnings.append("runtimeConfig is ignored in this file: the runtime passes it with every call")
    if given.delegates and given.cluster_network:
        warnings.append("delegates is ignored: clusterNetwork is set and takes precedence")
    return warnings
