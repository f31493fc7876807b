"""The Kubernetes API as the roles use it: raw JSON over one aiohttp session, decoded into partial structs.

:mod:`~services.common.kube.client` does single requests, :mod:`~services.common.kube.reflector` keeps a store in
step by list and watch, :mod:`~services.common.kube.errors` says what a failure means for the caller.
"""
