"""The HTTP session with the API server: where the cluster is, the credentials, and requests as bytes.

It knows neither objects nor verbs; :mod:`services.common.kube.client` adds them. Only this package imports
kubernetes_asyncio. Start with :mod:`services.common.kube.session.transport`.
"""
