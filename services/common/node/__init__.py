"""What hotnic shares with a node: its files, CNI configurations, mounts, and the socket of a multus daemon.

Read without any role, because the commands of :mod:`services.cli.node` work where none runs.
Start at :mod:`~services.common.node.files`.
"""
