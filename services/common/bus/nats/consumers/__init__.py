"""Consumers of the events: who creates them, and how a role receives by one (docs/adr/0043).

Start with :mod:`~services.common.bus.nats.consumers.creation`: the controller creates every consumer, those of the
nodes on request (:mod:`~services.common.bus.nats.consumers.requests`). A role receives by
:mod:`~services.common.bus.nats.consumers.pull`; what it does not ack however often it gets it is counted
(:mod:`~services.common.bus.nats.consumers.undelivered`).
"""
