"""Partial import of kubernetes_asyncio: its configuration and authentication without the generated models.

The whole library costs half a second and 70 MiB in every process, nearly all of it for 1,000 modules of models that
hotnic never uses. During the import of the few modules needed, empty packages replace the library's own, whose
``__init__`` would import the rest. ``sys.modules`` is restored afterwards, so a later ``import kubernetes_asyncio``
elsewhere imports the whole library.
Next: :mod:`services.common.kube.session.auth`, the only user.
"""

import importlib
import importlib.util
import sys
import types
from typing import Any, NamedTuple

_LIBRARY = "kubernetes_asyncio"


class KubernetesAsyncio(NamedTuple):
    """The parts of the library that hotnic uses; the library has no types.

    :ivar configuration: class that holds address, credentials and TLS files.
    :ivar kube_config: module that reads kubeconfig files.
    :ivar incluster: module that reads the service account.
    :ivar config_error: exception that both modules raise.
    """

    configuration: Any
    kube_config: Any
    incluster: Any
    config_error: type[Exception]


def load() -> KubernetesAsyncio:
    """Import the parts that hotnic uses.

    :raises ImportError: the library is not installed, or its layout has changed.
    """
    # A process that has imported the whole library already uses that one.
    if _LIBRARY in sys.modules:
        return _import_parts()
    spec = importlib.util.find_spec(_LIBRARY)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{_LIBRARY} is not installed", name=_LIBRARY)
    root = spec.submodule_search_locations[0]
    _add_empty_package(_LIBRARY, root)
    client = _add_empty_package(f"{_LIBRARY}.client", f"{root}/client")
    try:
        client.Configuration = importlib.import_module(f"{_LIBRARY}.client.configuration").Configuration
        # kube_config imports ApiClient for two helpers that create a client. hotnic does not use them.
        client.ApiClient = types.new_class("ApiClient")
        return _import_parts()
    finally:
        for name in [name for name in sys.modules if name == _LIBRARY or name.startswith(f"{_LIBRARY}.")]:
            del sys.modules[name]


def _add_empty_package(name: str, path: str) -> Any:
    module = types.ModuleType(name)
    module.__path__ = [path]
    sys.modules[name] = module
    return module


def _import_parts() -> KubernetesAsyncio:
    return KubernetesAsyncio(
        configuration=importlib.import_module(f"{_LIBRARY}.client.configuration").Configuration,
        kube_config=importlib.import_module(f"{_LIBRARY}.config.kube_config"),
        incluster=importlib.import_module(f"{_LIBRARY}.config.incluster_config"),
        config_error=importlib.import_module(f"{_LIBRARY}.config.config_exception").ConfigException,
    )
