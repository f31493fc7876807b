"""Traces: span files and their waterfall for ``hotnic trace``, and the spans that the command line itself creates.

Start with :mod:`services.cli.tracing.spans`.
"""
