"""The rtnetlink protocol: requests, parsed replies, and a connection that exchanges them with the kernel.

It does not know in which network namespace its socket was opened; :mod:`services.common.netlink.access` opens it.
Start with :mod:`services.common.netlink.rtnetlink.connection`.
"""
