"""The process of a role: settings, start and shutdown, health endpoints, background tasks, and the clients a role uses.

It knows nothing about any role, and it imports nothing here: the multus daemon uses the process frame without the bus.
Start with :mod:`services.common.runtime.process`, the frame; then :mod:`services.common.runtime.context`, the clients.
"""
