"""The api's own CA and serving certificate, in a Secret that all replicas share.

:mod:`~services.api.serving_certificate.reconcile` runs the loop: observe the APIServices and the Secret, then
:mod:`~services.api.serving_certificate.plan`, then apply. :mod:`~services.api.serving_certificate.certificates` makes
and reads certificates. A certificate that others make is read from files: :mod:`services.common.http.tls_files`.
"""
