"""The generated CNI configuration and the settings that it depends on."""

import json
from pathlib import Path
from typing import Any

import pytest
import structlog

from schemas.multus import CONF_NAME, SHIM_LOG_NAME
from services.common.node.cni_conf import read_plugin_types
from services.common.runtime.settings import SettingsError
from services.multus.cni.errors import CniError
from services.multus.config.settings import Config, Settings, read_config
from services.multus.container_runtime.autoconfig import Autoconfig, choose_primary, runtime_configuration
from services.multus.pod import config_files

PRIMARY = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {"type": "bridge"},
        {"type": "portmap", "capabilities": {"portMappings": True, "off": False}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ],
}


def configured(tmp_path: Path, **keys: Any) -> Config:
    file = tmp_path / "daemon-config.json"
    file.write_text(json.dumps(keys))
    conf = tmp_path / "conf"
    conf.mkdir(exist_ok=True)
    plugins = tmp_path / "bin"
    plugins.mkdir(exist_ok=True)
    return read_config(Settings(multus_config=str(file), cni_conf_dir=str(conf), cni_bin_dir=str(plugins)))[0]


@pytest.mark.parametrize(
    ("names", "master", "expected"),
    [
        ([], None, None),
        (["00-multus.conf"], None, None),
        (["20-b.conf", "10-a.conflist", "00-multus.conf", "README"], None, "10-a.conflist"),
        (["10-a.conflist", "00-other.conf"], None, "10-a.conflist"),
        (["10-a.conflist", "20-b.conf"], "20-b.conf", "20-b.conf"),
        (["10-a.conflist"], "20-b.conf", None),
        ([".10-a.conflist.1.tmp", "10-a.conflist~", "99-z.conf"], None, "99-z.conf"),
    ],
)
def test_choose_primary_skips_multus_own_configuration(
    names: list[str], master: str | None, expected: str | None
) -> None:
    assert choose_primary(names, master) == expected


def test_generated_configuration_names_shim_socket_and_primary(tmp_path: Path) -> None:
    config = configured(tmp_path, daemonSocketDir="/run/multus/", socketDir="/host/run/multus/", logLevel="verbose")
    assert runtime_configuration(config, "/etc/cni/net.d/10-a.conflist", json.dumps(PRIMARY)) == {
        "cniVersion": "0.4.0",
        "name": "multus-cni-network",
        "type": "hotnic-multus",
        "clusterNetwork": "/etc/cni/net.d/10-a.conflist",
        "daemonSocketDir": "/run/multus/",
        "logLevel": "verbose",
        "capabilities": {"bandwidth": True, "portMappings": True},
    }
    chosen = configured(tmp_path, cniVersion="0.3.1", clusterNetwork="mine")
    made = runtime_configuration(chosen, "/x", '{"name":"n","type":"bridge","cniVersion":"1.0.0"}')
    assert (made["cniVersion"], made["clusterNetwork"]) == ("0.3.1", "mine")
    assert "capabilities" not in made
    with pytest.raises(CniError):
        runtime_configuration(config, "/x", "{}")


def test_the_file_follows_the_primary_configuration(tmp_path: Path) -> None:
    config = configured(tmp_path)
    states: list[tuple[bool, str]] = []
    auto = Autoconfig(config, structlog.get_logger(), lambda ok, why: states.append((ok, why)))
    target = config.conf_dir / CONF_NAME
    auto.update()
    assert not target.exists()
    assert states == [(False, f"no primary CNI configuration in {config.conf_dir}: waiting for one beside multus' own")]

    source = config.conf_dir / "10-a.conflist"
    source.write_text(json.dumps(PRIMARY))
    auto.update()
    assert states[-1] == (True, "")
    assert target.stat().st_mode & 0o777 == 0o600
    first = json.loads(target.read_text())
    inode = target.stat().st_ino
    auto.update()
    assert target.stat().st_ino == inode

    source.write_text(json.dumps({**PRIMARY, "cniVersion": "1.0.0"}))
    auto.update()
    assert json.loads(target.read_text()) == {**first, "cniVersion": "1.0.0"}
    # A multus-cni that shuts down may remove or rewrite the file; the daemon restores it.
    target.unlink()
    auto.update()
    assert target.exists()
    target.write_text("{}")
    auto.update()
    assert json.loads(target.read_text()) == {**first, "cniVersion": "1.0.0"}
    for broken in (b"{", b"\xff"):
        source.write_bytes(broken)
        auto.update()
        assert not states[-1][0]
    assert json.loads(target.read_text())["cniVersion"] == "1.0.0"


def test_an_equal_file_of_an_earlier_daemon_is_not_rewritten(tmp_path: Path) -> None:
    config = configured(tmp_path)
    (config.conf_dir / "10-a.conflist").write_text(json.dumps(PRIMARY))
    Autoconfig(config, structlog.get_logger(), lambda _ok, _why: None).update()
    inode = (config.conf_dir / CONF_NAME).stat().st_ino
    Autoconfig(config, structlog.get_logger(), lambda _ok, _why: None).update()
    assert (config.conf_dir / CONF_NAME).stat().st_ino == inode


def test_a_directory_is_no_configuration_and_is_in_the_way_of_none(tmp_path: Path) -> None:
    """A plugin such as host-local makes directories at paths that the author of a network chooses."""
    config = configured(tmp_path)
    settings = tmp_path / "bin" / SHIM_LOG_NAME
    for path in (config.conf_dir / "01-a.conf", config.conf_dir / CONF_NAME, settings):
        path.mkdir()
        (path / "10.0.0.1").write_text("lease")
    (config.conf_dir / "pods").mkdir()
    (config.conf_dir / "pods" / "a.conf").mkdir()
    (config.conf_dir / "elsewhere").write_text(json.dumps(PRIMARY))
    primary = config.conf_dir / "10-a.conflist"
    primary.symlink_to("elsewhere")
    auto = Autoconfig(config, structlog.get_logger(), lambda _ok, _why: None)
    auto.update()
    assert auto.problem == ""
    made = json.loads((config.conf_dir / CONF_NAME).read_text())
    assert made["clusterNetwork"] == str(primary)
    assert config_files.load(config.conf_dir).name == "multus-cni-network"
    assert config_files.load(primary).types == ["bridge", "portmap", "bandwidth"]
    assert config_files.find_named(config.conf_dir, "pods") is not None
    assert [*read_plugin_types(config.conf_dir)] == [CONF_NAME, "10-a.conflist"]
    logging = Autoconfig(configured(tmp_path, logLevel="error"), structlog.get_logger(), lambda _ok, _why: None)
    logging.update()
    assert (logging.problem, json.loads(settings.read_text())) == ("", {"logLevel": "error"})
    for folder, name in ((config.conf_dir, CONF_NAME), (settings.parent, SHIM_LOG_NAME)):
        (aside,) = folder.glob(f"{name}.aside-*")
        assert (aside / "10.0.0.1").read_text() == "lease"


def test_upstreams_default_configuration_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "daemon-config.json"
    file.write_text(
        '{"chrootDir":"/hostroot","cniVersion":"0.3.1","logLevel":"verbose","logToStderr":true,'
        '"cniConfigDir":"/host/etc/cni/net.d","multusAutoconfigDir":"/host/etc/cni/net.d",'
        '"multusConfigFile":"auto","socketDir":"/host/run/multus/"}'
    )
    config, warnings = read_config(Settings(multus_config=str(file)))
    assert warnings == []
    assert config.socket_dir == Path("/host/run/multus")
    assert config.shim_socket_dir == "/run/multus/"
    assert (config.chroot_dir, config.host_root) == (Path("/hostroot"), "/hostroot")
    assert config.autoconfig_dir == config.conf_dir == Path("/host/etc/cni/net.d")
    assert config.global_namespaces == {"default"}
    assert not config.isolation


@pytest.mark.parametrize("text", ["{", '{"namespaceIsolation":"yes"}', '{"defaultNetworks":"a"}'])
def test_a_bad_file_is_a_settings_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "daemon-config.json"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"daemon-config\.json") as caught:
        read_config(Settings(multus_config=str(file)))
    assert caught.value.variable == "HOTNIC_MULTUS_CONFIG"


def test_the_shim_gets_its_log_settings_in_a_file_beside_it(tmp_path: Path) -> None:
    """It takes none from its standard input, which may be the configuration of a network."""
    settings = tmp_path / "bin" / SHIM_LOG_NAME
    for keys, expected in (
        (
            {"logFile": "/var/log/shim.log", "logLevel": "verbose"},
            {"logFile": "/var/log/shim.log", "logLevel": "verbose"},
        ),
        ({"logToStderr": False}, {"logToStderr": False}),
        ({}, None),
    ):
        config = configured(tmp_path, **keys)
        (config.conf_dir / "10-a.conflist").write_text(json.dumps(PRIMARY))
        Autoconfig(config, structlog.get_logger(), lambda _ok, _why: None).update()
        assert (json.loads(settings.read_text()) if settings.exists() else None) == expected
