"""A player of KubeVirt: it does to the objects of a cluster what virt-api, virt-controller and virt-handler do.

It is no KubeVirt: it runs no virt-launcher and no libvirt, and plays only what concerns network interfaces and the life
cycle of VMs around them. What it plays was recorded from KubeVirt 1.9.0 and 1.0.1, or read in the source of the other
versions; `docs/lab.md` lists it by version, with what is left out. Start with `versions.py`, the table of versions;
`specs.py`, `annotations.py`, `interfaces.py` and `conditions.py` are the decisions, `player.py` runs them.
"""
