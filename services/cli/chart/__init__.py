"""The Helm chart's hooks, which run in the cluster: ``helm uninstall`` and ``helm test`` start them."""
