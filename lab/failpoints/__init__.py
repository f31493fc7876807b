"""Failpoints: a test makes a role die before or after any of its externally visible effects.

The roles do not know failpoints. Each effect has a span, and ``python -m lab.failpoints ROLE`` runs a role whose tracer
is wrapped. The lab starts all roles in this way when ``HOTNIC_LAB_FAILPOINTS`` names a directory. A file in it with the
name of a failpoint and a moment, such as ``networks.delegate-add.before``, arms the failpoint. The process that reaches
the failpoint removes the file, and sends SIGKILL to itself or to the process whose id the file contains. So a failpoint
can be armed at any time, and it fires once.

:mod:`lab.failpoints.points` lists the failpoints, :mod:`lab.failpoints.tracer` fires them.
``tests/e2e/test_crash_matrix.py`` has a case for each of them.
"""
