"""The CNI meta-plugin of a node: a daemon on a unix socket, and the small program that the runtime executes.

Wire-compatible with multus-cni v4's thick plugin, with what that leaves open: one record per sandbox that survives
the daemon, a lock per sandbox across ``/cni`` and ``/delegate``, and no DEL under a card that a guest still uses.
It never imports the bus. A call goes :mod:`~services.multus.server` → :mod:`~services.multus.observe` →
:mod:`~services.multus.plan` → :mod:`~services.multus.apply`; start reading at :mod:`services.multus.call`.
"""
