"""Client of the Kubernetes API: raw JSON over one aiohttp session, decoded into partial structs.

:mod:`~services.common.kube.client` sends single requests over a :mod:`~services.common.kube.session`,
:mod:`~services.common.kube.cache` keeps objects in sync by list and watch, :mod:`~services.common.kube.errors`
classifies failures. Start with :mod:`services.common.kube.client`.
"""
