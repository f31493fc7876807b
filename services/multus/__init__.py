"""The multus role: a CNI meta-plugin daemon on a unix socket, and the shim that the container runtime executes.

The HTTP interface is compatible with the thick plugin of multus-cni v4. Three guarantees go beyond upstream: a record
per sandbox survives the daemon, a lock per sandbox covers both ``/cni`` and ``/delegate``, and a DEL is refused while
a guest still uses the interface. The role never imports the bus.

A call passes :mod:`~services.multus.server`, :mod:`~services.multus.call_handler`, :mod:`~services.multus.observe`,
:mod:`~services.multus.plan` and :mod:`~services.multus.apply`; read them in this order. They use six packages:

* :mod:`~services.multus.cni`: the CNI protocol, from the decoded call to the plugins' processes;
* :mod:`~services.multus.config`: environment variables and ``daemon-config.json``;
* :mod:`~services.multus.pod`: the pod of a sandbox, its networks and devices, its status and Events;
* :mod:`~services.multus.records`: what is attached to each sandbox;
* :mod:`~services.multus.sandboxes`: adoption, deletion and sweep of whole sandboxes;
* :mod:`~services.multus.container_runtime`: the shim, the runtime's configuration and its list of sandboxes.
"""
