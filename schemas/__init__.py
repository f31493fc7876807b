"""Types and encodings of what hotnic's roles exchange: events, Kubernetes objects, CNI documents and names.

This package takes no decisions and imports nothing of ``services``.
Start with :mod:`schemas.stages` (the stages of an operation), then :mod:`schemas.events` (one event per stage).
"""
