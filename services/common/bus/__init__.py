"""The event bus: a protocol for the roles, messages and their delivery, and the implementation on NATS JetStream.

Start with :mod:`services.common.bus.protocol`. Roles import only that module and the function
:func:`services.common.bus.nats.jetstream.connect`; how a message is encoded, delivered and dead-lettered does not
depend on NATS.
"""
