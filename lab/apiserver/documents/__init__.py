"""Descriptions of resources for clients: discovery, OpenAPI, and the tables that kubectl prints.

Nothing here changes an object. Start with `discovery.py`.
"""
