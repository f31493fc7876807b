"""The controller role: from the VMI's spec to the pod's networks annotation, and from the pod's network status back.

A key goes :mod:`~services.controller.role` → :mod:`~services.controller.observe` →
:mod:`~services.controller.plan` → :mod:`~services.controller.apply`.
"""
