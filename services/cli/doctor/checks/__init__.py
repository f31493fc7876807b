"""The consistency checks. Pure: each one takes a snapshot's values and yields findings.

Start with :mod:`services.cli.doctor.checks.nics`, which prepares a VMI for the checks.
"""
