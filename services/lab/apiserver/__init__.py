"""The lab's stand-in for kube-apiserver: one process, one SQLite file, the API that stock kubectl expects.

Read in this order: `server.py` (a request comes in) → `handlers.py` (which verb) → `rest.py` (what it does) →
`store.py` (where it ends) → `watch.py` (who hears of it). What it lacks is listed in `docs/lab.md`.
"""
