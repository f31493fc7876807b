"""Rows of the table of reasons: what stands around a VM beside KubeVirt and keeps an interface from going on. Data.

Code, sentence and remedy, as in :class:`services.common.domain.kubevirt.reasons.Reason`.
Next: :mod:`services.common.domain.kubevirt.surroundings.refine`, which chooses one.
"""

MIGRATE = "virtctl migrate {vm} -n {namespace}"
ATTACH_IN_PLACE = "run networks and multus of hotnic, or a thick Multus with its controller, on node {node}"
"""Remedies that several reasons have."""

ROWS: tuple[tuple[str, str, str], ...] = (
    (
        "VirtControllerAway",
        "virt-controller has to act next, and does not run: {why}",
        "kubectl get pods -n {kubevirt} -l kubevirt.io=virt-controller; their logs and Events have the cause",
    ),
    (
        "VirtHandlerAway",
        "virt-handler has to change the guest, and none of its pods is ready on node {node}",
        "kubectl get node {node}; kubectl describe pods -n {kubevirt} -l kubevirt.io=virt-handler "
        "--field-selector spec.nodeName={node}",
    ),
    (
        "NoNetworksController",
        "nobody attaches networks to running pods on node {node}: neither hotnic's networks nor the dynamic networks "
        "controller runs there, and Multus alone attaches them when a pod starts",
        ATTACH_IN_PLACE + "; or migrate the VM: " + MIGRATE,
    ),
    (
        "NetworksControllerNotReady",
        "the pod that attaches networks to running pods on node {node}, {attacher}, is not ready",
        "kubectl get node {node}; kubectl describe pod {attacher} -n {attacher_namespace}",
    ),
    (
        "MultusNotReady",
        "the Multus daemon of node {node}, pod {attacher}, is not ready",
        "kubectl get node {node}; kubectl describe pod {attacher} -n {attacher_namespace}",
    ),
    (
        "AttachFailed",
        "the interface could not be attached to the pod; the last Event is {event}",
        "remove the cause. networks of hotnic tries again by itself; the dynamic networks controller gives up after "
        "four attempts: remove the interface and add it again",
    ),
    (
        "DetachFailed",
        "the interface could not be detached from the pod; the last Event is {event}",
        "remove the cause. networks of hotnic tries again by itself; the dynamic networks controller gives up after "
        "four attempts: migrate the VM: " + MIGRATE,
    ),
    (
        "NoFreeSlot",
        "the guest has no free PCI slot for the device; the last Event is {event}",
        "unplug another device, or restart the VM: it starts with the interface, and with free slots",
    ),
    (
        "GuestAttachFailed",
        "virt-handler could not change the guest; the last Event is {event}",
        "remove the cause; virt-handler tries again by itself. If nothing helps, restart the VM",
    ),
    (
        "GuestDetachFailed",
        "the guest has the device, and virt-handler could not change the guest; the last Event is {event}",
        "remove the cause; virt-handler tries again by itself. If nothing helps, restart the VM",
    ),
    (
        "MigrationPending",
        "the migration {migration} of the VM has not begun to copy the guest; its phase is {state}",
        "if this lasts: kubectl describe vmim {migration} -n {namespace}",
    ),
    (
        "MigrationTargetUnschedulable",
        "no node takes the pod {target} of the VM's migration {migration}: {text}",
        "make room for it on a node that fits, or restart the VM",
    ),
    (
        "MigrationFailed",
        "the migration {migration} of the VM failed: {text}. {before}",
        "remove the cause (kubectl describe vmim {migration} -n {namespace}), then migrate the VM: " + MIGRATE,
    ),
)
