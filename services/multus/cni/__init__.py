"""The CNI protocol: calls, configurations, results and errors, and the execution of plugins.

It knows neither Kubernetes nor the records. The types of the protocol's documents are in :mod:`schemas.cni`.
Start at :mod:`~services.multus.cni.call` for what the daemon receives, and at :mod:`~services.multus.cni.network` for
how it runs the plugins of a network.
"""
