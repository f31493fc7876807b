"""hotnic's roles (``api``, ``controller``, ``networks``, ``multus``, ``handler``), command line and shared code.

The types of everything that travels between processes are in :mod:`schemas`. Start with :mod:`services.common`.
"""
