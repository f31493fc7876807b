"""What stands around a VM beside KubeVirt: migrations, Events, and the pods that act on it. Pure.

VM, VMI and launcher pod say how far an interface is and who acts next. Why that does not happen is often in other
objects. They are read only for a VM whose reason asks for them. Start with
:mod:`services.common.domain.kubevirt.surroundings.refine`.
"""
