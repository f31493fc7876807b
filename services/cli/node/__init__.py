"""Removal of hotnic's files from one node: :mod:`~services.cli.node.observe`, ``plan``, ``apply``.

It runs where hotnic no longer does, so it needs neither the cluster nor a role. The command is
:mod:`services.cli.commands.node`.
"""
