"""The networks role, one per node: attaches and detaches networks of running pods as their annotation requests.

A reconciler with one key per pod. It compares the annotation ``networks`` with ``network-status``, sends each
difference to the multus daemon's ``/delegate`` with sandbox and netns from the container runtime, and writes the
outcome back to the pod. It runs no CNI plugins (the multus role does) and changes no link inside a pod (the handler
does).
Next: :mod:`services.networks.role`, then ``plan`` (the decisions) and ``apply`` (the effects).
"""
