"""The auth callout of NATS: a role's identity on the bus is derived from the token of its ServiceAccount.

nats-server asks the api about every connection (ADR-26 of NATS, ADR 38 of hotnic). Start with
:mod:`services.api.bus_auth.callout`. :mod:`services.api.bus_auth.plan` decides.
"""
