"""The hot-plug status of one VMI, as the api serves it.

:mod:`~services.api.hotplug_status.read` builds it from live objects and the bucket;
:mod:`~services.api.hotplug_status.watch` streams its changes.
"""
