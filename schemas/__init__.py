"""What travels between the parts of hotnic: events, Kubernetes objects, CNI documents, names and encodings.

Types and pure encodings only: no decision is taken here and nothing of ``services`` is imported.
Start with :mod:`schemas.stages` (the way of one NIC), then :mod:`schemas.events` (what is published on it).
"""
