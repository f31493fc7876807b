"""Work on whole sandboxes: adoption from multus-cni, default routes, deletion, and the sweep of those without a DEL.

Calls for single attachments are carried out by :mod:`services.multus.call_handler`.
Start at :mod:`~services.multus.sandboxes.deletion`.
"""
