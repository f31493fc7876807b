"""The node role that attaches a pod's NIC to the guest (upstream: virt-handler).

It sets up an in-pod bridge and a tap, then attaches the device. Start at :mod:`services.handler.role`; the decisions
are in :mod:`services.handler.plan`, :mod:`services.handler.unplug` and :mod:`services.handler.pod_network.setup`.
"""
