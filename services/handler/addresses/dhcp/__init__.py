"""DHCPv4 and DHCPv6: the messages, and the reply to each request of a guest. Pure.

Not here: frames and sockets (:mod:`services.handler.addresses.packets`), and which addresses a guest gets
(:mod:`services.handler.addresses.offer`). Read :mod:`~services.handler.addresses.dhcp.dhcp4` first.
"""
