"""Background work after a write: namespaces, CRDs, garbage collection and the expiry of Events.

Start with `manager.py`.
"""
