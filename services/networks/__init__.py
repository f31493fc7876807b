"""The networks role, one per node: a running pod gets the attachments its annotation asks for, and loses the others.

A reconciler per pod: the ``networks`` annotation against ``network-status``. The difference goes to the multus daemon's
``/delegate``, with sandbox and netns from the container runtime; the outcome is written back to the pod.
Not here: CNI plugins (multus), and what happens to a link inside the pod (handler).
Start with :mod:`services.networks.role`, then ``plan`` (the decisions) and ``apply`` (the effects).
"""
