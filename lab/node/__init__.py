"""The lab's node: what kubelet, kube-scheduler, virt-controller and virt-launcher do, reduced to what the lab needs.

All of it is one process for each node: `scheduler.py` binds pods to nodes, `kubelet.py` turns pods into CRI sandboxes,
`virt.py` creates VMIs and launcher pods, and `launcher.py` runs a QEMU guest in the pod's network namespace. Of several
nodes, one schedules and creates pods for all; `uplinks.py` joins the others' bridges with its. `objects.py` builds the
objects with pure functions. Nothing here writes the VMI's `status.interfaces`, the networks annotation of an
existing pod, or hot-plugged guest NICs: those belong to hotnic's roles.
"""
