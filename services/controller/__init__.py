"""The controller role: copies interfaces from the VMI's spec to the pod, and the pod's network status to the VMI.

A key passes :mod:`~services.controller.role` → :mod:`~services.controller.observe` →
:mod:`~services.controller.plan` → :mod:`~services.controller.apply`.
"""
