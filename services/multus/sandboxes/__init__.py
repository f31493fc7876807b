"""Work on whole sandboxes: adoption from multus-cni, default routes, deletion, GC, and the sweep without a call.

Calls for single attachments are carried out by :mod:`services.multus.call_handler`.
Start at :mod:`~services.multus.sandboxes.deletion`.
"""
