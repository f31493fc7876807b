"""How a guest learns the addresses that the network's IPAM chose for its NIC: DHCPv4, router advertisement, DHCPv6.

One server per NIC, on the guest's own tap: it hears what this guest sends and nobody else, and what it says reaches
this guest and nobody else. Pure codecs (``frames``, ``dhcp4``, ``dhcp6``), what is offered (``offer``), who is
answered what (``answer4``, ``answer6``, ``neighbours``, ``talk``); the edges are ``ear`` and ``server``.
Next: :mod:`services.handler.addresses.offer`.
"""
