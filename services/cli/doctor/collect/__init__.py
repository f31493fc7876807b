"""Takes the snapshot that the checks compare. Reads only; decides nothing.

Start with :mod:`services.cli.doctor.collect.objects`.
"""
