"""The commands with their options, messages and tables; ``hotnic doctor`` is :mod:`services.cli.doctor.command`.

What they request and read is in :mod:`services.cli.operations` and :mod:`services.cli.tracing`.
Start with :mod:`services.cli.commands.status`, the simplest one.
"""
