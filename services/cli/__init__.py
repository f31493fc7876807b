"""The command line: ``hotnic …``, also as ``kubectl hotnic …``.

A thin client: it decides nothing that an API server or a role could decide. Begin at :mod:`services.cli.__main__`.
"""
