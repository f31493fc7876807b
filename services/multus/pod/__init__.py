"""The pod of a sandbox: the pod itself, the networks and devices it may get, and what the daemon writes to it.

Nothing here adds or deletes an attachment. Which networks the pod gets is put together in
:mod:`services.multus.observe`. Start at :mod:`~services.multus.pod.reader`; for the lookup order of a network's CNI
configuration, at :mod:`~services.multus.pod.network_lookup`.
"""
