"""The daemon's own configuration: environment variables, ``daemon-config.json`` and the log that they configure.

CNI configurations are not here: those of networks are found by :mod:`services.multus.pod.network_lookup`, and the
container runtime's is written by :mod:`services.multus.container_runtime.autoconfig`.
Start at :mod:`~services.multus.config.settings`.
"""
