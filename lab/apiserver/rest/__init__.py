"""The verbs on stored objects: create, get, update, patch, delete and list.

Start with `verbs.py`.
"""
