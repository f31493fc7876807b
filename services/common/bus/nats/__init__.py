"""The bus on NATS JetStream. Only this package imports nats-py.

It decides nothing about the content of a message: encoding and delivery are in :mod:`services.common.bus`.
Start with :mod:`services.common.bus.nats.jetstream`.
"""
