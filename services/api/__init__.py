"""The api role: the aggregated API server of ``addinterface`` and ``removeinterface``.

A request passes :mod:`~services.api.server` → :mod:`~services.api.request` → :mod:`~services.api.observe` →
:mod:`~services.api.plan` → :mod:`~services.api.apply` → response.
"""
