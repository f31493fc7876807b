"""The event bus: one small protocol, one implementation on NATS JetStream.

Start with :mod:`services.common.bus.protocol`; roles import only that and the function
:func:`services.common.bus.jetstream.connect`.
"""
