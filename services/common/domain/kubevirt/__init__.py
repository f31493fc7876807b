"""What hotnic knows of a KubeVirt installation beside it: who owns the VMs, and what this version can do. Pure.

Start with :mod:`services.common.domain.kubevirt.owner`.
"""
