"""Read-only client of the container runtime (CRI): the sandbox of a pod and its network namespace.

:mod:`services.common.cri.client` sends the calls; :mod:`services.common.cri.sandbox` and
:mod:`services.common.cri.container` parse the responses.
"""
