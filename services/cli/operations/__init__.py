"""A plug or unplug operation as the command line sees it: its request, its progress, and the hot-plug status.

Start with :mod:`services.cli.operations.request`.
"""
