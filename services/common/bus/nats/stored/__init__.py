"""Reading what the streams store, without a consumer (docs/adr/0043).

Start with :mod:`~services.common.bus.nats.stored.messages`. It serves the bucket
(:mod:`~services.common.bus.nats.stored.keyvalue`), and commands
(:mod:`~services.common.bus.nats.stored.reader`).
"""
