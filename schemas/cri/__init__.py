"""The part of the Container Runtime Interface that hotnic speaks: a trimmed proto and its generated stubs.

Wire compatible with the public CRI API (same package, service, message and field numbers); calls and fields
that hotnic never uses are left out. The stubs come from ``scripts/proto``; no decisions here.
"""
