"""Links, addresses and routes of a network namespace, over rtnetlink, without entering it for longer than a moment.

What is done to them is decided elsewhere; nothing here knows of VMs. Start at :mod:`services.common.netlink.pool`.
"""
