"""CNI configurations from the node's directories, in multus' order of lookup.

The files are small and local and are read synchronously. A configuration list can be continued in a directory beside
its file that has the network's name; other components drop single-plugin configurations there (libcni's subdirectory
chaining). Configurations from Kubernetes are the subject of :mod:`services.multus.pod.network_lookup`.
"""

from pathlib import Path
from typing import Any

import msgspec

from schemas import cni
from schemas.inputs import Edge
from services.common.node.files import file_names, read_bounded
from services.multus.cni import conflist
from services.multus.cni.conflist import NetworkConfig
from services.multus.cni.errors import CniError

SUFFIXES = (".conf", ".conflist", ".json")
"""Suffixes of the files that can hold a CNI configuration."""


def load(path: Path) -> NetworkConfig:
    """Load the configuration in a file, or in the first file of a directory.

    :param path: the file or the directory.
    :raises CniError: there is no such file, or it is not a CNI configuration.
    """
    try:
        if path.is_dir():
            files = _files(path)
            if not files:
                raise CniError(cni.CniErrorCode.INVALID_CONFIG, f"directory {path} holds no CNI configuration")
            path = files[0]
        return _load_file(path)
    except OSError as error:
        raise CniError(cni.CniErrorCode.INVALID_CONFIG, f"cannot read network {str(path)!r}: {error}") from error


def find_named(folder: Path, name: str) -> NetworkConfig | None:
    """Return the configuration in a directory whose network has this name; files that cannot be read are skipped."""
    if not folder.is_dir():
        return None
    for path in _files(folder):
        try:
            if conflist.decode_object(read_bounded(path), Edge.FILE).get("name") == name:
                return _load_file(path)
        except (OSError, CniError):
            continue
    return None


def load_directory(folder: Path) -> list[dict[str, Any]]:
    """Return the plugins in a directory of single-plugin configurations, sorted by file name.

    :param folder: the directory; if it does not exist, there are no plugins.
    :raises CniError: a file is not a configuration.
    """
    if not folder.is_dir():
        return []
    plugins = []
    # As libcni, which reads only `*.conf` there.
    for path in _files(folder, (".conf",)):
        try:
            plugins.append(conflist.decode_object(read_bounded(path), Edge.FILE))
        except OSError as error:
            raise CniError(cni.CniErrorCode.IO_FAILURE, f"CNI configuration {path}: {error}") from error
        except CniError as error:
            raise error.with_prefix(str(path)) from error
    return plugins


def _load_file(path: Path) -> NetworkConfig:
    """Load a file together with the plugins in the directory that continues it."""
    text = read_bounded(path)
    document = conflist.decode_object(text, Edge.FILE)
    more: list[dict[str, Any]] = []
    name = document.get("name")
    inlined_only = document.get("loadOnlyInlinedPlugins") is True
    if path.suffix == ".conflist" and isinstance(name, str) and name and "/" not in name and not inlined_only:
        more = load_directory(path.parent / name)
    if not more:
        return conflist.parse(text, name=path.stem, edge=Edge.FILE)
    if not document.get("plugins"):
        # The list itself is empty: all of its plugins come from the directory.
        return conflist.parse(msgspec.json.encode({**document, "plugins": more}), edge=Edge.FILE)
    network = conflist.parse(text, edge=Edge.FILE)
    return conflist.with_plugins(network, [*network.plugins, *more])


def _files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    return [folder / name for name in file_names(folder) if Path(name).suffix in suffixes]
