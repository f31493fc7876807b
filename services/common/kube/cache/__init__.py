"""Objects of the cluster as a watch delivers them, so that a role does not request them again for every run.

A cache may be behind the cluster. :mod:`services.common.kube.cache.cached_reader` therefore reads an object from the
API server while the cache does not have the version that an event or our own patch has named.
Start with :mod:`services.common.kube.cache.reflector`.
"""
