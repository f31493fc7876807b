"""The records: what is attached to each sandbox, in files that survive the daemon, also those of multus-cni.

What is done with an attachment is not decided here but in :mod:`services.multus.plan`.
Start at :mod:`~services.multus.records.sandbox`, then :mod:`~services.multus.records.store`.
"""
