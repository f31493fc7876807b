"""What every role shares: edges to the outside (bus, kube, cri, http, netlink, telemetry), the loop and pure decisions.

One subject per package; no role is imported from here.
"""
