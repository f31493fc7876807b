"""The pod network of one NIC: the links between the pod interface that CNI creates and the guest's device.

:mod:`~services.handler.pod_network.records` is the state before, :mod:`~services.handler.pod_network.setup` and
:mod:`~services.handler.pod_network.teardown` compute netlink operations, :mod:`~services.handler.pod_network.apply`
applies them.
"""
