"""The command line ``hotnic``, also available as ``kubectl hotnic``.

A thin client: every decision is left to the API server and the roles. Start with :mod:`services.cli.__main__`.
"""
