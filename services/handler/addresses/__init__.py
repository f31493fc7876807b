"""Address configuration of guest NICs: DHCPv4, router advertisements and DHCPv6 serve the addresses that IPAM chose.

The handler runs one server per NIC, on the NIC's own tap. The server receives only what this guest sends, and its
replies reach only this guest. ``frames``, ``dhcp4`` and ``dhcp6`` are pure codecs. ``offer`` and ``served`` build what
a guest is offered. ``dhcp4_replies``, ``dhcp6_replies``, ``neighbours`` and ``responder`` build the replies.
``listener``, ``server`` and ``service`` own the sockets. Next: :mod:`services.handler.addresses.offer`.
"""
