"""What hotnic reads and writes in Kubernetes: objects, the annotations on them, and the bodies of the aggregated API.

Start with :mod:`schemas.kubernetes.objects`, then :mod:`schemas.kubernetes.operations`, hotnic's own annotations.
"""
