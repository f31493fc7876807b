"""The container runtime, asked through its CRI: which sandbox runs a pod, and where its network namespace is.

Read only: nobody here starts or stops a sandbox. :mod:`services.common.cri.sandbox` reads the answers (pure),
:mod:`services.common.cri.client` asks.
"""
