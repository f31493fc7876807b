"""The kubelet's pod-resources API: a trimmed proto and the modules generated from it by ``make proto``.

Which devices of a device plugin the kubelet has given to which pod. Read by the multus daemon for networks whose NAD
names a resource, and imported only then.
"""
