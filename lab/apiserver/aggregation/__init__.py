"""Aggregated API servers: the state of their APIServices, and the proxy to them.

Start with `api_services.py`.
"""
