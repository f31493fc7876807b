"""Frames between a guest and its address server: their parts, the filter in the kernel, and the socket with its limits.

Not here: what a reply contains (:mod:`services.handler.addresses.responder`). Read
:mod:`~services.handler.addresses.packets.frames` first.
"""
