"""The identities of a lab's processes: for Kubernetes `certificates.py`, for NATS `bus.py`.

On Kubernetes itself, `lab.supervisor.kubernetes.access` replaces the roles' certificates by tokens.
"""
