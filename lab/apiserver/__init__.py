"""The lab's replacement for kube-apiserver: one process with one SQLite file, serving the API that kubectl expects.

Read in this order: `endpoints/server.py` (receives a request) → `endpoints/handlers.py` (selects the verb) →
`rest/verbs.py` (implements it) → `storage/store.py` (stores the object) → `storage/watch.py` (sends the change to
watchers). `app.py` assembles the parts. `docs/lab.md` lists the gaps.
"""
