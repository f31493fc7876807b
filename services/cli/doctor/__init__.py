"""``hotnic doctor``: compares everything that describes the network interfaces of running VMs.

:mod:`~services.cli.doctor.command` → :mod:`~services.cli.doctor.collect` takes a snapshot →
:mod:`~services.cli.doctor.examine` runs the checks → report. Start with :mod:`services.cli.doctor.snapshot`, the types.
"""
