"""The lab's node: what kubelet, the scheduler, virt-controller and virt-launcher do on a real one, as small as it
can be.

One process, separate modules: `scheduler.py` (pods get this node), `kubelet.py` (pods become CRI sandboxes),
`virt.py` (VM -> VMI -> launcher pod) and `launcher.py` (a QEMU guest in the pod's network namespace). The shapes of
objects are pure functions in `objects.py`. Nothing here writes a VMI's `status.interfaces`, the networks annotation
of an existing pod, or the guest's hot-plugged cards: those are the product's.
"""
