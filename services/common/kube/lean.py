"""The lean import of kubernetes_asyncio: its configuration and authentication without its generated models.

Imported whole, the library costs half a second and 70 MiB in every process, nearly all of it 1,000 modules of models
that hotnic never uses. Only this module knows how to avoid that: while the few modules we need are imported, bare
packages stand in for the library's own, whose ``__init__`` would import the rest. Afterwards ``sys.modules`` is as it
was, so a later ``import kubernetes_asyncio`` elsewhere gets the library whole.
Next: :mod:`services.common.kube.auth`, the only user.
"""

import importlib
import importlib.util
import sys
import types
from typing import Any, NamedTuple

_LIBRARY = "kubernetes_asyncio"


class Lean(NamedTuple):
    """The used parts of the library, untyped as they are there.

    :ivar configuration: the class that holds address, credentials and TLS files.
    :ivar kube_config: module that reads kubeconfig files. :ivar incluster: module that reads the service account.
    :ivar config_error: what both raise.
    """

    configuration: Any
    kube_config: Any
    incluster: Any
    config_error: type[Exception]


def load() -> Lean:
    """Import the used parts; those of the whole library if this process has imported it already.

    :raises ImportError: the library is not installed, or no longer laid out as this module knows it.
    """
    if _LIBRARY in sys.modules:
        return _parts()
    spec = importlib.util.find_spec(_LIBRARY)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{_LIBRARY} is not installed", name=_LIBRARY)
    root = spec.submodule_search_locations[0]
    _stand_in(_LIBRARY, root)
    client = _stand_in(f"{_LIBRARY}.client", f"{root}/client")
    try:
        client.Configuration = importlib.import_module(f"{_LIBRARY}.client.configuration").Configuration
        # Imported by kube_config for two helpers that build a client; hotnic has its own.
        client.ApiClient = types.new_class("ApiClient")
        return _parts()
    finally:
        for name in [name for name in sys.modules if name == _LIBRARY or name.startswith(f"{_LIBRARY}.")]:
            del sys.modules[name]


def _stand_in(name: str, path: str) -> Any:
    module = types.ModuleType(name)
    module.__path__ = [path]
    sys.modules[name] = module
    return module


def _parts() -> Lean:
    return Lean(
        configuration=importlib.import_module(f"{_LIBRARY}.client.configuration").Configuration,
        kube_config=importlib.import_module(f"{_LIBRARY}.config.kube_config"),
        incluster=importlib.import_module(f"{_LIBRARY}.config.incluster_config"),
        config_error=importlib.import_module(f"{_LIBRARY}.config.config_exception").ConfigException,
    )
