"""A cluster for development on one machine: everything real that can be real, in namespaces of its own.

Start reading at `commands.py` (what `hotnic lab …` calls), then `holder.py` (outside: lock, listeners, `unshare`),
`supervisor.py` (inside: who is started, in which order) and `components.py` (how). The stand-ins for the cluster
are `apiserver/` and `node/`; `guest/` boots the machines. docs/lab.md says what is real and what is not.
Nothing outside this package may know whether a cluster is the lab.
"""
