"""What exists before anyone asks: system namespaces, and the key to trust the front proxy.

The ConfigMap `kube-system/extension-apiserver-authentication` tells aggregated servers how to know the proxy's
certificate and which headers carry the user (upstream: pkg/controlplane/controller/clusterauthenticationtrust).
"""

from __future__ import annotations

import json
from pathlib import Path

from services.lab.apiserver import pki
from services.lab.apiserver.errors import Object
from services.lab.apiserver.gc import call_for
from services.lab.apiserver.resources import Registry
from services.lab.apiserver.rest import Rest
from services.lab.apiserver.store import Store

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


def lay_out(store: Store, registry: Registry, rest: Rest, directory: Path) -> None:
    """Create what is missing; bring the ConfigMap up to date."""
    namespaces = registry.storage("/namespaces")
    configmaps = registry.storage("/configmaps")
    assert namespaces is not None
    assert configmaps is not None
    for name in NAMESPACES:
        if store.get("/namespaces", "", name) is None:
            rest.create(call_for(namespaces), {"metadata": {"name": name}})
    name = "extension-apiserver-authentication"
    wanted = _trust(directory)
    stored = store.get("/configmaps", "kube-system", name)
    if stored is None:
        rest.create(call_for(configmaps, "kube-system"), {"metadata": {"name": name}, "data": wanted})
    elif stored.obj.get("data") != wanted:
        rest.replace(call_for(configmaps, "kube-system", name), {"metadata": {"name": name}, "data": wanted})


def _trust(directory: Path) -> Object:
    return {
        "client-ca-file": pki.ca_file(directory).read_text(),
        "requestheader-client-ca-file": pki.ca_file(directory, "front-proxy-ca").read_text(),
        "requestheader-allowed-names": json.dumps(["front-proxy-client"]),
        "requestheader-username-headers": json.dumps(["X-Remote-User"]),
        "requestheader-uid-headers": json.dumps(["X-Remote-Uid"]),
        "requestheader-group-headers": json.dumps(["X-Remote-Group"]),
        "requestheader-extra-headers-prefix": json.dumps(["X-Remote-Extra-"]),
    }
