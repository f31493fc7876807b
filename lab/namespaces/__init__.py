"""The lab's namespaces, seen from outside, and the inside of them before any process is started.

`holder.py` (start with it) creates and removes them, `isolation.py` sets up their mounts and loopback interface,
`nodes.py` creates those of further nodes, `cgroups.py` removes what they leave on the machine, and `control.py` is the
client of the supervisor's socket.
"""
