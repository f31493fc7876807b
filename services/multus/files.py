"""CNI configurations from the node's directories, found as multus finds them.

Small local files, read synchronously. A list may be continued in a directory named after it beside its file, into which
other parties drop plugins (libcni's subdirectory chaining). Configurations that come from Kubernetes are
:mod:`services.multus.catalogue`'s.
"""

from pathlib import Path
from typing import Any

import msgspec

from schemas import cni
from services.multus import conflist
from services.multus.conflist import Network
from services.multus.errors import CniError

SUFFIXES = (".conf", ".conflist", ".json")


def at(path: Path) -> Network:
    """The configuration in a file, or in the first file of a directory.

    :raises CniError: there is none, or it is not one.
    """
    try:
        if path.is_dir():
            files = _configurations(path)
            if not files:
                raise CniError(cni.Code.INVALID_CONFIG, f"directory {path} holds no CNI configuration")
            path = files[0]
        return _whole(path)
    except OSError as error:
        raise CniError(cni.Code.INVALID_CONFIG, f"network {str(path)!r} is not to be found: {error}") from error


def named(folder: Path, name: str) -> Network | None:
    """The configuration in a directory whose network has that name; unreadable ones are passed over."""
    if not folder.is_dir():
        return None
    for path in _configurations(folder):
        try:
            if conflist.top_level(path.read_bytes()).get("name") == name:
                return _whole(path)
        except (OSError, CniError):
            continue
    return None


def dropped(folder: Path) -> list[dict[str, Any]]:
    """The plugins in a directory of single configurations, by file name; none where there is no directory.

    :raises CniError: a file is no configuration.
    """
    if not folder.is_dir():
        return []
    plugins = []
    for path in sorted(entry for entry in folder.iterdir() if entry.suffix == ".conf"):
        try:
            plugins.append(conflist.top_level(path.read_bytes()))
        except OSError as error:
            raise CniError(cni.Code.IO_FAILURE, f"CNI configuration {path}: {error}") from error
        except CniError as error:
            raise error.prefixed(str(path)) from error
    return plugins


def _whole(path: Path) -> Network:
    """A file with what has been dropped beside it."""
    text = path.read_bytes()
    document = conflist.top_level(text)
    more: list[dict[str, Any]] = []
    name = document.get("name")
    inlined_only = document.get("loadOnlyInlinedPlugins") is True
    if path.suffix == ".conflist" and isinstance(name, str) and name and "/" not in name and not inlined_only:
        more = dropped(path.parent / name)
    if not more:
        return conflist.parse(text, name=path.stem)
    if not document.get("plugins"):
        # All of its plugins stand in the directory.
        return conflist.parse(msgspec.json.encode({**document, "plugins": more}))
    network = conflist.parse(text)
    return conflist.with_plugins(network, [*network.plugins, *more])


def _configurations(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.suffix in SUFFIXES)
