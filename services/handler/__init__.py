"""The node role that puts a pod's NIC into the guest: in-pod bridge and tap, then the card (upstream: virt-handler).

Start at :mod:`services.handler.role`; the decisions are in :mod:`services.handler.plan` and
:mod:`services.handler.pod_network`.
"""
