"""The hot-plug status and the Kubernetes Events: what a user sees of an operation. Pure.

:mod:`~services.common.domain.status.hotplug_status` derives the stage from objects, and
:mod:`~services.common.domain.status.stage_history` adds what the events of the bus know: times, attempts, failures. Not
here: the VMI's own ``status.interfaces`` (:mod:`services.common.domain.status_interfaces`).
"""
