"""The control loops of the played KubeVirt: each reads objects, decides by the pure modules, and takes its steps.

`play.py` is what they share. `vms.py` and `vmis.py` are virt-controller's loops, `domains.py` is virt-handler's,
`migrations.py` and `workloads.py` move VMs, `pods.py` is a kubelet with Multus where there is none.
"""
