"""``daemon-config.json``: every key of multus works, is refused with a reason, or is said to have no effect."""

import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from services.common.logs import logger
from services.common.settings import SettingsError
from services.multus import logs
from services.multus.autoconfig import CONF_NAME, Autoconfig, document
from services.multus.daemon_config import DaemonConfig, parse
from services.multus.settings import Config, Settings, read

UPSTREAM_KEYS = {
    # the daemon's, the generator's, and the ones that every request is overlaid with (multus-cni v4.3.0)
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
    return read(Settings(multus_config=str(file), cni_conf_dir=str(conf)))


def test_every_key_of_upstream_is_known() -> None:
    assert {field.encode_name for field in msgspec.structs.fields(DaemonConfig)} == UPSTREAM_KEYS


def test_a_key_that_nobody_knows_is_said_to_be_ignored() -> None:
    _, said = parse(b'{"cniVersion":"1.0.0","hostNetwork":true,"apiVersion":1}')
    assert said == [
        "apiVersion is not a key of multus and is ignored",
        "hostNetwork is not a key of multus and is ignored",
    ]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"forceCNIVersion": True}, "would rewrite the primary CNI's own file"),
        ({"perNodeCertificate": {"enabled": True, "certDir": "/c"}}, "give it a service account or a kubeconfig"),
        ({"connectionLimit": 0}, "is not a number of connections"),
        ({"metricsPort": 70000}, "is not a port"),
        ({"logLevel": "loud"}, "is none of debug, verbose, error, panic"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_reason(tmp_path: Path, keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        configured(tmp_path, **keys)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"enablePprof": True}, "enablePprof is ignored"),
        ({"retryDeleteOnError": False}, "retryDeleteOnError is ignored: what a DEL could not undo is always"),
        ({"logToStderr": False}, "logToStderr false is ignored by the daemon"),
        ({"logOptions": {"maxAge": 5}}, "logOptions.maxAge and .compress are ignored"),
        ({"runtimeConfig": {"ips": ["a"]}}, "runtimeConfig is ignored in this file"),
        ({"delegates": [{"type": "x"}], "clusterNetwork": "pods"}, "delegates is ignored: clusterNetwork"),
        ({"forceCNIVersion": False, "perNodeCertificate": {"enabled": False}, "logToStderr": True}, None),
    ],
)
def test_what_has_no_effect_is_said(tmp_path: Path, keys: dict[str, Any], sentence: str | None) -> None:
    _, said = configured(tmp_path, **keys)
    assert len(said) == (0 if sentence is None else 1)
    assert (sentence or "") in "".join(said)


def test_names_and_capabilities_of_the_written_configuration(tmp_path: Path) -> None:
    config, _ = configured(tmp_path, capabilities={"bandwidth": True, "mac": False}, name="mine", type="multus-shim")
    made = document(config, "/p", json.dumps(PRIMARY))
    assert (made["name"], made["type"]) == ("mine", "multus-shim")
    assert made["capabilities"] == {"bandwidth": True, "ips": True}
    config, _ = configured(tmp_path, overrideNetworkName=True)
    assert document(config, "/p", json.dumps(PRIMARY))["name"] == "pods"


def test_where_plugins_and_namespaces_are_reached_from_a_container(tmp_path: Path) -> None:
    config, _ = configured(tmp_path, chrootDir="/hostroot", binDir="/opt/bin", cniDir="/state", kubeconfig="/k")
    assert (config.chroot_dir, config.host_root) == (Path("/hostroot"), "/hostroot")
    assert (config.bin_dir, config.cni_dir, config.kubeconfig) == (Path("/opt/bin"), Path("/state"), "/k")
    config, _ = configured(tmp_path, chrootDir="/")
    assert (config.chroot_dir, config.host_root) == (None, "/")
    own = Settings(host_root="/node", multus_config=str(tmp_path / "daemon-config.json"))
    (tmp_path / "daemon-config.json").write_text('{"chrootDir":"/hostroot"}')
    assert read(own)[0].host_root == "/node"


def test_a_finished_configuration_is_copied_and_the_daemon_goes_on(tmp_path: Path) -> None:
    """Fault: with a path in multusConfigFile the daemon ended as soon as it had started (1366, 1143)."""
    finished = tmp_path / "70-mine.conf"
    finished.write_text('{"cniVersion":"1.0.0","name":"m","type":"multus-shim","clusterNetwork":"pods"}\n')
    config, said = configured(tmp_path, multusConfigFile=str(finished))
    assert said == []
    states: list[tuple[bool, str]] = []
    auto = Autoconfig(config, structlog.get_logger(), lambda ok, why: states.append((ok, why)))
    auto.look()
    assert (config.conf_dir / finished.name).read_text() == finished.read_text()
    assert not (config.conf_dir / CONF_NAME).exists()
    finished.write_text("{")
    auto.look()
    assert [ok for ok, _ in states] == [True, False]
    assert "is not a JSON object" in states[-1][1]
    assert "clusterNetwork" in (config.conf_dir / finished.name).read_text()


def test_the_runtime_is_not_sent_here_before_the_readiness_file_is_there(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    config, _ = configured(tmp_path, readinessindicatorfile=str(ready))
    (config.conf_dir / "10-a.conflist").write_text(json.dumps(PRIMARY))
    states: list[tuple[bool, str]] = []
    auto = Autoconfig(config, structlog.get_logger(), lambda ok, why: states.append((ok, why)))
    auto.look()
    assert states == [(False, f"readiness indicator file {ready} is awaited")]
    assert not (config.conf_dir / CONF_NAME).exists()
    ready.touch()
    auto.look()
    assert (config.conf_dir / CONF_NAME).exists()
    # It goes again: pods made now wait in the daemon, they do not lose their networks.
    ready.unlink()
    auto.look()
    assert not states[-1][0]
    assert (config.conf_dir / CONF_NAME).exists()


def test_the_log_goes_to_the_file_at_the_level_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "multus.log"
    config, _ = configured(tmp_path, logFile=str(path), logLevel="debug", logOptions={"maxSize": 1, "maxBackups": 2})
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        log = logs.applied(config, Settings(), logger("multus"))
        log.debug("heard", answer=42)
        [line] = [json.loads(text) for text in path.read_text().splitlines()]
        assert (line["event"], line["answer"], line["level"]) == ("heard", 42, "debug")
        assert "heard" in capsys.readouterr().err
    finally:
        for handler in root.handlers:
            if handler not in before:
                handler.close()
        root.handlers[:] = before
        root.setLevel(level)
        logging.captureWarnings(False)
