"""Several roles of a node in one process. It has no work of its own.

Start with :mod:`services.node.__main__`; :mod:`services.node.supervisor` runs the roles.
"""
