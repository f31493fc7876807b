"""The parts of a lab, each in a container of its own: `python -m lab.container PART`, which docker-compose.yml starts.

`cluster.py` is the API server, `node.py` the container runtime, kubelet and guests, `samples.py` the sample network and
VM. `hotnic lab up` does not use this package: it runs all parts in namespaces of its own (`lab.supervisor`, whose
configuration this package shares). The container gives the isolation here, and Docker restarts a part that ends.
Next: `__main__.py`, then `process.py`.
"""
