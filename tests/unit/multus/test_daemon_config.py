"""``daemon-config.json``: every key of multus works, is refused with a reason, or causes a warning."""

import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from schemas.multus import CONF_NAME
from services.common.runtime.settings import SettingsError
from services.common.telemetry.logs import configure, logger
from services.multus.config import logs
from services.multus.config.daemon_config import DaemonConfig, parse
from services.multus.config.settings import Config, Settings, read_config
from services.multus.container_runtime.autoconfig import Autoconfig, runtime_configuration

UPSTREAM_KEYS = {
    # Keys of the daemon, of the generator, and those that upstream lays over every request (multus-cni v4.3.0).
    *("chrootDir", "socketDir", "logFile", "logLevel", "logToStderr", "connectionLimit", "metricsPort", "enablePprof"),
    *("perNodeCertificate", "cniVersion", "multusConfigFile", "multusAutoconfigDir", "multusMasterCNI", "cniConfigDir"),
    *("readinessindicatorfile", "forceCNIVersion", "overrideNetworkName", "binDir", "cniDir", "capabilities"),
    *("clusterNetwork", "namespaceIsolation", "globalNamespaces", "auxiliaryCNIChainName", "daemonSocketDir"),
    *("logOptions", "name", "type", "confDir", "delegates", "defaultNetworks", "kubeconfig", "runtimeConfig"),
    *("systemNamespaces", "multusNamespace", "retryDeleteOnError"),
}
PRIMARY = {"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "bridge", "capabilities": {"ips": True}}]}


def configured(tmp_path: Path, **keys: Any) -> tuple[Config, list[str]]:
    file = tmp_path / "daemon-config.json"
    file.write_text(json.dumps(keys))
    conf = tmp_path / "conf"
    conf.mkdir(exist_ok=True)
    return read_config(Settings(multus_config=str(file), cni_conf_dir=str(conf)))


def test_every_upstream_key_has_a_field() -> None:
    assert {field.encode_name for field in msgspec.structs.fields(DaemonConfig)} == UPSTREAM_KEYS


def test_an_unknown_key_causes_a_warning() -> None:
    _, warnings = parse(b'{"cniVersion":"1.0.0","hostNetwork":true,"apiVersion":1}')
    assert warnings == [
        "apiVersion is not a key of multus and is ignored",
        "hostNetwork is not a key of multus and is ignored",
    ]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"forceCNIVersion": True}, "would rewrite the primary CNI's own file"),
        (
            {"perNodeCertificate": {"enabled": True, "certDir": "/c"}},
            "give the daemon a service account or a kubeconfig",
        ),
        ({"connectionLimit": 0}, "is not a positive number of connections"),
        ({"metricsPort": 70000}, "is not a TCP port"),
        ({"logLevel": "loud"}, "is none of debug, verbose, error, panic"),
    ],
)
def test_unsupported_values_are_refused_with_a_reason(tmp_path: Path, keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        configured(tmp_path, **keys)


@pytest.mark.parametrize(
    ("keys", "warning"),
    [
        ({"enablePprof": True}, "enablePprof is ignored"),
        ({"retryDeleteOnError": False}, "retryDeleteOnError is ignored: a failed DEL always"),
        ({"logToStderr": False}, "logToStderr false is ignored by the daemon"),
        ({"logOptions": {"maxAge": 5}}, "logOptions.maxAge and .compress are ignored"),
        ({"runtimeConfig": {"ips": ["a"]}}, "runtimeConfig is ignored in this file"),
        ({"delegates": [{"type": "x"}], "clusterNetwork": "pods"}, "delegates is ignored: clusterNetwork"),
        ({"forceCNIVersion": False, "perNodeCertificate": {"enabled": False}, "logToStderr": True}, None),
    ],
)
def test_keys_without_effect_cause_a_warning(tmp_path: Path, keys: dict[str, Any], warning: str | None) -> None:
    _, warnings = configured(tmp_path, **keys)
    assert len(warnings) == (0 if warning is None else 1)
    assert (warning or "") in "".join(warnings)


def test_generated_configuration_has_configured_name_type_and_capabilities(tmp_path: Path) -> None:
    config, _ = configured(tmp_path, capabilities={"bandwidth": True, "mac": False}, name="mine", type="multus-shim")
    made = runtime_configuration(config, "/p", json.dumps(PRIMARY))
    assert (made["name"], made["type"]) == ("mine", "multus-shim")
    assert made["capabilities"] == {"bandwidth": True, "ips": True}
    config, _ = configured(tmp_path, overrideNetworkName=True)
    assert runtime_configuration(config, "/p", json.dumps(PRIMARY))["name"] == "pods"


def test_chroot_dir_sets_the_root_for_plugins_and_namespaces(tmp_path: Path) -> None:
    config, _ = configured(tmp_path, chrootDir="/hostroot", binDir="/opt/bin", cniDir="/state", kubeconfig="/k")
    assert (config.chroot_dir, config.host_root) == (Path("/hostroot"), "/hostroot")
    assert (config.bin_dir, config.cni_dir, config.kubeconfig) == (Path("/opt/bin"), Path("/state"), "/k")
    config, _ = configured(tmp_path, chrootDir="/")
    assert (config.chroot_dir, config.host_root) == (None, "/")
    own = Settings(host_root="/node", multus_config=str(tmp_path / "daemon-config.json"))
    (tmp_path / "daemon-config.json").write_text('{"chrootDir":"/hostroot"}')
    assert read_config(own)[0].host_root == "/node"


def test_plugins_run_in_the_nodes_root_wherever_it_is_mounted(tmp_path: Path) -> None:
    """Without a ``daemon-config.json``: every path in a plugin's configuration is the node's."""
    config = read_config(Settings(host_root=str(tmp_path)))[0]
    assert (config.chroot_dir, config.host_root) == (tmp_path, str(tmp_path))
    assert (config.bin_dir, config.installed_plugins) == (Path("/opt/cni/bin"), tmp_path / "opt/cni/bin")
    (tmp_path / "opt" / "cni").mkdir(parents=True)
    (tmp_path / "opt" / "cni" / "bin").symlink_to("/var/lib/plugins")
    assert config.installed_plugins == tmp_path / "var/lib/plugins"
    config = read_config(Settings())[0]
    assert (config.chroot_dir, config.installed_plugins) == (None, Path("/opt/cni/bin"))


def test_a_finished_configuration_is_copied(tmp_path: Path) -> None:
    """Upstream fault: with a path in multusConfigFile, the daemon ended right after its start (1366, 1143)."""
    finished = tmp_path / "70-mine.conf"
    finished.write_text('{"cniVersion":"1.0.0","name":"m","type":"multus-shim","clusterNetwork":"pods"}\n')
    config, warnings = configured(tmp_path, multusConfigFile=str(finished))
    assert warnings == []
    states: list[tuple[bool, str]] = []
    auto = Autoconfig(config, structlog.get_logger(), lambda ok, why: states.append((ok, why)))
    auto.update()
    assert (config.conf_dir / finished.name).read_text() == finished.read_text()
    assert not (config.conf_dir / CONF_NAME).exists()
    finished.write_text("{")
    auto.update()
    assert [ok for ok, _ in states] == [True, False]
    assert "is not a JSON object" in states[-1][1]
    assert "clusterNetwork" in (config.conf_dir / finished.name).read_text()


def test_no_configuration_is_written_before_the_readiness_file_exists(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    config, _ = configured(tmp_path, readinessindicatorfile=str(ready))
    (config.conf_dir / "10-a.conflist").write_text(json.dumps(PRIMARY))
    states: list[tuple[bool, str]] = []
    auto = Autoconfig(config, structlog.get_logger(), lambda ok, why: states.append((ok, why)))
    auto.update()
    assert states == [(False, f"waiting for readiness indicator file {ready}")]
    assert not (config.conf_dir / CONF_NAME).exists()
    ready.touch()
    auto.update()
    assert (config.conf_dir / CONF_NAME).exists()
    # The configuration stays without the file: pods created now wait in the daemon and keep their networks.
    ready.unlink()
    auto.update()
    assert not states[-1][0]
    assert (config.conf_dir / CONF_NAME).exists()


def test_log_keys_are_about_the_daemon_and_no_other_role_of_the_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "multus.log"
    config, _ = configured(tmp_path, logFile=str(path), logLevel="debug", logOptions={"maxSize": 1, "maxBackups": 2})
    plain, _ = configured(tmp_path)
    root, namespace = logging.getLogger(), logging.getLogger("hotnic")
    before, levels = root.handlers[:], (root.level, namespace.level)
    try:
        process = configure("node", form="json")
        # The role starts twice.
        for _ in range(2):
            log = logs.configure_logs(config, logger("multus"))
        log.debug("reply", answer=42)
        logging.getLogger("hotnic.http").error("unexpected error in a request handler")
        logger("networks").warning("from another role")
        logger("networks", "debug").debug("below the level of the process")
        line, failure = [json.loads(text) for text in path.read_text().splitlines()]
        assert (line["event"], line["answer"], line["level"]) == ("reply", 42, "debug")
        assert failure["event"] == "unexpected error in a request handler"
        shown = [json.loads(text)["event"] for text in capsys.readouterr().err.splitlines()]
        assert shown == ["reply", "unexpected error in a request handler", "from another role"]
        logs.configure_logs(plain, process).info("after a start without the keys")
        logger("multus", "debug").debug("below the level of the process")
        assert len(path.read_text().splitlines()) == 2
    finally:
        logs.configure_logs(plain, logger("multus"))
        root.handlers[:] = before
        root.setLevel(levels[0])
        namespace.setLevel(levels[1])
        logging.captureWarnings(False)
