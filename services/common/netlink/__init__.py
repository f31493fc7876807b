"""rtnetlink client for network namespaces: links, addresses, routes, sysctls, taps and packet sockets.

This package knows nothing of VMs; callers decide what to change. Start with :mod:`services.common.netlink.pool`; the
protocol is :mod:`services.common.netlink.rtnetlink`.
"""
