"""The container runtime's CNI configurations on a node: which plugins each file calls.

A runtime reads the first file of the directory by name. Next: :mod:`services.common.node.daemon_socket`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from schemas.inputs import Edge, InputDecoder, RejectedInput
from services.common.node.files import file_names, read_bounded

SUFFIXES: Final = (".conf", ".conflist", ".json")
"""The suffixes that libcni reads."""

PluginTypes = Mapping[str, tuple[str, ...]]
"""The plugin types that each file calls, by file name."""

_document = InputDecoder(Edge.FILE, dict[str, Any])


def read_plugin_types(folder: Path, locate: Callable[[Path], Path] = lambda path: path) -> dict[str, tuple[str, ...]]:
    """Return the plugin types that each configuration of a directory calls, in the order of the file names.

    A file that is no CNI configuration calls none. A directory that does not exist has no files.

    :param locate: returns the file to read for one of the directory, which may be a link of another root.
    :raises OSError: the directory cannot be read.
    """
    try:
        names = [name for name in file_names(folder) if Path(name).suffix in SUFFIXES]
    except FileNotFoundError:
        return {}
    return {name: _types(folder / name, locate) for name in names}


def _types(path: Path, locate: Callable[[Path], Path]) -> tuple[str, ...]:
    try:
        document = _document.decode(read_bounded(locate(path)))
    # A file may be removed or written while it is read, and a link may lead nowhere.
    except (OSError, RejectedInput):
        return ()
    plugins = document.get("plugins")
    listed = plugins if isinstance(plugins, list) else []
    found = (item.get("type") for item in (document, *listed) if isinstance(item, dict))
    return tuple(kind for kind in found if isinstance(kind, str))
