"""Storage: objects in memory and in an SQLite file, and the events of changes for watches.

Start with `store.py`.
"""
