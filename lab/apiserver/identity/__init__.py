"""Users: certificates and tokens that identify them, and reviews of their rights.

Start with `auth.py`.
"""
