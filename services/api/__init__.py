"""The api role: the aggregated API server behind ``addinterface`` and ``removeinterface``.

A request goes :mod:`~services.api.server` → :mod:`~services.api.request` → :mod:`~services.api.observe` →
:mod:`~services.api.plan` → :mod:`~services.api.apply` → answer.
"""
