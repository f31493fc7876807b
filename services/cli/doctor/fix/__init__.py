"""``hotnic doctor --fix``: removes what a finding calls left over, if nothing can be using it.

:mod:`~services.cli.doctor.fix.changes` has the changes as data, :mod:`~services.cli.doctor.fix.choose` decides which
finding carries one, :mod:`~services.cli.doctor.fix.plan` makes steps of them, :mod:`~services.cli.doctor.fix.apply`
applies a step, and :mod:`~services.cli.doctor.fix.rounds` repeats this until nothing is left to do.
"""
