"""Clients for a guest: one protocol for its domain, implemented by QMP and by libvirt, and the guest agent.

The handler changes domains through them, ``hotnic doctor`` lists the devices. Next: :mod:`services.common.guest.port`.
"""
