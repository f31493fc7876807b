"""The supervisor: process 1 of a lab, which runs all other processes.

Start with `__main__.py`. `lifecycle.py` starts and stops everything in order. `components.py` has the command line and
configuration of each process, `processes.py` runs them, `readiness.py` waits for them. `cluster.py`, `credentials`
and `bootstrap.py` set up the Kubernetes cluster. `progress.py` reports the start, `requests.py` answers `hotnic lab …`
on the control socket, `relay.py` connects NATS and a trace collector (`collector.py`) with the outside.
"""
