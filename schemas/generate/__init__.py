"""Describes the exchanged documents as JSON Schemas, and the bus as an AsyncAPI document.

Only :mod:`schemas.generate.__main__` writes files. No role imports this package.
"""
