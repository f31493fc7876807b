"""The served resources: which there are, and the schemas, defaults and validation of their objects.

Start with `resources.py`.
"""
