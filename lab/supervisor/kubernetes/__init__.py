"""Kubernetes itself in a lab: its control plane, the roles' rights, and a node with a kubelet.

Nothing here is needed for the lab's own API server. Read `control_plane.py` first.
"""
