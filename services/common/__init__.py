"""Packages that all roles share: clients, pure decisions, telemetry, the process frame and the reconcile queue.

:mod:`~services.common.bus`, :mod:`~services.common.kube`, :mod:`~services.common.cri`, :mod:`~services.common.http`,
:mod:`~services.common.netlink` and :mod:`~services.common.guest` are clients of one system each.
:mod:`~services.common.domain` holds the pure decisions that several roles share. Nothing here imports a role.
Start with :mod:`services.common.runtime`, then :mod:`services.common.reconcile`.
"""
