"""The container runtime's side of the node: the shim that it executes, its configuration, and its list of sandboxes.

The runtime's calls are not here: the shim passes them to :mod:`services.multus.server`.
Start at :mod:`~services.multus.container_runtime.autoconfig`.
"""
