"""The table of versions and situations: what a user of KubeVirt reads when interfaces change beside it. Data.

Each row is a story: what the user does, or what happens, and what the user reads then. An empty text means that there
is nothing to read. ``hotnic status`` is given as kind, stage and reason; an arrow precedes a part of the remedy.
``--wait`` is how ``addinterface`` or ``removeinterface`` with that option ends. ``operations`` are the kinds of all
operations of the interface, each with one id from its first event to its last. A row that ends with a reason and a
remedy instead waits until somebody follows that.
Not here: how the steps are taken (:mod:`tests.support.lab.cells`).
"""

from tests.support.lab.cells import Situation

VERSIONS = ("1.0", "1.1", "1.3", "1.5", "1.6", "1.8", "1.9")

ADD, REMOVE, WAIT, STATUS = "hotnic addinterface", "hotnic removeinterface", "--wait", "hotnic status"
EDIT = "kubectl edit vm: "
OK = "accepted"
ATTACHED = "plug guest-attached"
GONE = "not listed"
UNSERVED = (
    "Warning: no ready pod was found on node kvnode1 that attaches networks to running pods (hotnic's networks, or the "
    "dynamic networks controller); without one, "
)
FOR_EVER = "the change waits for ever: "
NOT_MIGRATABLE = (
    "it cannot be migrated: cannot migrate VMI which does not use masquerade, bridge with annotation or a migratable "
    "plugin"
)
RESTARTS = (
    "KubeVirt 1.3 sets the condition RestartRequired at every change of a VM's interfaces, although it applies the "
    "change to the running VM"
)
IN_EACH = (
    (("1.0", "1.1"), OK, ATTACHED),
    (("1.3", "1.3"), f"Warning: {RESTARTS}", f"{ATTACHED} RestartRequiredAlways"),
    (("1.5", "1.9"), OK, ATTACHED),
)
"""In all versions: the answer to a request that is accepted, and the status of an interface that was plugged then."""
IN_EACH_UNSERVED = (
    (("1.0", "1.1"), OK, "WaitingForMultusAttached"),
    (("1.3", "1.3"), f"Warning: {RESTARTS}", "WaitingForMultusAttached"),
    (("1.5", "1.5"), OK, "WaitingForMultusAttached"),
    (("1.6", "1.9"), OK, "WaitingForMultusOrMigration"),
)
"""In all versions: that answer, and the reason of an interface that Multus has not attached yet."""
GATE_OFF = (
    '400 BadRequest: Unable to Add Interface because the "HotplugNICs" feature gate is not enabled. KubeVirt owns the '
    "VMs, so list it in the KubeVirt object: spec.configuration.developerConfiguration.featureGates"
)


def refused(code: str, text: str) -> str:
    """Return a refusal of a request about the VM."""
    return f'{code}: Operation cannot be fulfilled on virtualmachine.kubevirt.io "{{vm}}": {text}'


PLUG = [
    Situation(
        name="plug",
        versions=versions,
        steps=((ADD, ok), (WAIT, "attached"), (STATUS, attached), ("operations", "plug")),
    )
    for versions, ok, attached in IN_EACH
]
PLUG += [
    Situation(
        name="plug by kubectl, which 1.0 does not follow",
        versions=("1.0", "1.0"),
        steps=(
            (EDIT + "add the interface", ""),
            (STATUS, "plug requested TemplateNotFollowed → take the edit back"),
            ("virtctl restart", ""),
            (STATUS, ATTACHED),
            ("operations", ""),
        ),
    ),
    *(
        Situation(
            name="plug by kubectl",
            versions=versions,
            steps=((EDIT + "add the interface", ""), (STATUS, attached), ("operations", "plug")),
        )
        for versions, attached in (
            (("1.1", "1.1"), ATTACHED),
            (("1.3", "1.3"), f"{ATTACHED} RestartRequiredAlways"),
            (("1.5", "1.9"), ATTACHED),
        )
    ),
]

UNPLUG = [
    Situation(
        name="unplug",
        versions=versions,
        nics=("other", "nic"),
        steps=((REMOVE, ok), (WAIT, "detached"), (STATUS, GONE), ("operations", "unplug")),
    )
    for versions, ok, _ in IN_EACH
]
UNPLUG += [
    Situation(
        name="unplug while the guest does not release the device",
        versions=versions,
        nics=("other", "nic"),
        steps=(
            ("the guest waits", ""),
            (REMOVE, ok),
            (STATUS, "unplug requested WaitingForGuestDetached → release it"),
            ("the guest goes on", ""),
            (WAIT, "detached"),
            ("operations", "unplug"),
        ),
    )
    for versions, ok, _ in IN_EACH
]
UNPLUG += [
    Situation(
        name="unplug by kubectl, which 1.0 does not follow",
        versions=("1.0", "1.0"),
        nics=("other", "nic"),
        steps=(
            (EDIT + "state absent", ""),
            (STATUS, "unplug requested TemplateNotFollowed → take the edit back"),
            ("virtctl restart", ""),
            (STATUS, GONE),
            ("operations", ""),
        ),
    ),
    Situation(
        name="unplug by kubectl, and taken back, which KubeVirt follows after the unplug",
        versions=("1.1", "1.9"),
        nics=("other", "nic"),
        steps=(
            ("the guest waits", ""),
            (EDIT + "state absent", ""),
            (STATUS, "unplug requested WaitingForGuestDetached → release it"),
            (EDIT + "no state", ""),
            (STATUS, "unplug requested ComesBack → remove it again after that"),
            ("the guest goes on", ""),
            ("operations", "unplug, plug"),
        ),
    ),
]

LAST_UNPLUG = [
    Situation(
        name="last unplug",
        versions=("1.0", "1.1"),
        nics=("nic",),
        steps=(
            (
                REMOVE,
                refused(
                    "409 Conflict",
                    "KubeVirt {version} never takes the last secondary interface out of a running VM; add another "
                    "one first, or stop the VM",
                ),
            ),
        ),
    ),
    Situation(
        name="last unplug by kubectl",
        versions=("1.1", "1.1"),
        nics=("nic",),
        steps=(
            (EDIT + "state absent", ""),
            (STATUS, "unplug guest-detached LastInterfaceStays → plug another"),
            ("operations", "unplug"),
        ),
    ),
    *(
        Situation(
            name="last unplug",
            versions=versions,
            nics=("nic",),
            steps=((REMOVE, ok), (WAIT, "detached"), (STATUS, GONE), ("operations", "unplug")),
        )
        for versions, ok, _ in IN_EACH[1:]
    ),
]

LINK_STATE = [
    Situation(
        name="link state",
        versions=("1.0", "1.3"),
        nics=("nic",),
        steps=(
            (EDIT + "state down", "422: logical {nic} interface state value is unsupported: down"),
            (STATUS, ATTACHED),
        ),
    ),
    Situation(
        name="link state",
        versions=("1.5", "1.9"),
        nics=("nic",),
        steps=(
            (EDIT + "state down", ""),
            (STATUS, f"{ATTACHED} (link down)"),
            (EDIT + "state up", ""),
            (STATUS, ATTACHED),
            ("operations", ""),
        ),
    ),
]

NAD_CHANGE = [
    Situation(
        name="another network",
        versions=("1.0", "1.1"),
        nics=("nic",),
        steps=((EDIT + "network net2", ""), (STATUS, ATTACHED)),
    ),
    Situation(
        name="another network",
        versions=("1.3", "1.3"),
        nics=("nic",),
        steps=(
            (EDIT + "network net2", ""),
            (STATUS, f"{ATTACHED} RestartRequired → restart the VM"),
        ),
    ),
    Situation(
        name="another network",
        versions=("1.5", "1.6"),
        nics=("nic",),
        steps=((EDIT + "network net2", ""), (STATUS, f"{ATTACHED} RestartRequired → restart the VM")),
    ),
    Situation(
        name="another network, without the gate LiveUpdateNADRef",
        versions=("1.8", "1.8"),
        nics=("nic",),
        gates=False,
        steps=((EDIT + "network net2", ""), (STATUS, f"{ATTACHED} RestartRequired → restart the VM")),
    ),
    Situation(
        name="another network",
        versions=("1.8", "1.9"),
        nics=("nic",),
        steps=(
            (EDIT + "network net2", ""),
            (STATUS, "plug requested MigrationNotConfigured → virtctl migrate"),
            ("virtctl migrate", ""),
            (STATUS, ATTACHED),
            ("operations", "plug"),
        ),
    ),
    Situation(
        name="another network, which KubeVirt may migrate for",
        versions=("1.8", "1.9"),
        nics=("nic",),
        methods=("LiveMigrate",),
        steps=(
            ("the workload update waits", ""),
            (EDIT + "network net2", ""),
            (STATUS, "plug requested WillMigrate"),
            ("the workload update goes on", ""),
            (STATUS, ATTACHED),
            ("operations", "plug"),
        ),
    ),
    Situation(
        name="another network, not migratable and Evict",
        versions=("1.8", "1.9"),
        nics=("nic",),
        methods=("Evict",),
        migratable=False,
        steps=(
            ("the workload update waits", ""),
            (EDIT + "network net2", ""),
            (STATUS, "plug requested WillBeShutDown → take the change back at once"),
        ),
    ),
]

SRIOV = [
    Situation(
        name="SR-IOV",
        versions=("1.0", "1.0"),
        steps=(
            (EDIT + "add an SR-IOV interface", ""),
            (STATUS, "plug requested TemplateNotFollowed → restart the VM"),
        ),
    ),
    Situation(
        name="SR-IOV",
        versions=("1.1", "1.5"),
        steps=(
            (EDIT + "add an SR-IOV interface", ""),
            (STATUS, "plug requested MigrationByHand → virtctl migrate"),
            ("virtctl migrate", ""),
            ("operations", "plug"),
        ),
    ),
    Situation(
        name="SR-IOV",
        versions=("1.6", "1.9"),
        steps=(
            (EDIT + "add an SR-IOV interface", ""),
            (STATUS, "plug requested MigrationNotConfigured → virtctl migrate"),
            ("virtctl migrate", ""),
            (STATUS, ATTACHED),
            ("operations", "plug"),
            (
                REMOVE,
                '422 Invalid: virtualmachine.kubevirt.io "{vm}" is invalid: "{nic}" interface\'s state "absent" is '
                "supported only for bridge binding: interface '{nic}' does not use the bridge binding; only bridge "
                "interfaces can change while the VM runs",
            ),
        ),
    ),
    Situation(
        name="SR-IOV, which KubeVirt may migrate for",
        versions=("1.6", "1.9"),
        methods=("LiveMigrate",),
        steps=(
            ("the workload update waits", ""),
            (EDIT + "add an SR-IOV interface", ""),
            (STATUS, "plug requested WillMigrate"),
            ("the workload update goes on", ""),
            (STATUS, ATTACHED),
            ("operations", "plug"),
        ),
    ),
]

RESTART = [
    Situation(
        name="restart in the middle of a plug",
        versions=versions,
        steps=(
            ("Multus waits", ""),
            (ADD, ok),
            (STATUS, f"plug pod-annotated {waits}"),
            ("virtctl restart", ""),
            (WAIT, "template"),
            (STATUS, ATTACHED),
            ("operations", "plug"),
        ),
    )
    for versions, ok, waits in IN_EACH_UNSERVED
]
RESTART += [
    Situation(
        name="restart in the middle of an unplug",
        versions=versions,
        nics=("other", "nic"),
        steps=(
            ("the guest waits", ""),
            (REMOVE, ok),
            (STATUS, "unplug requested WaitingForGuestDetached"),
            ("virtctl restart", ""),
            (WAIT, "template"),
            (STATUS, GONE),
            ("operations", "unplug"),
        ),
    )
    for versions, ok, _ in IN_EACH
]

MIGRATION = [
    Situation(
        name="migration in the middle of a plug",
        versions=versions,
        steps=(
            ("virtctl migrate begins", ""),
            (ADD, ok),
            (STATUS, "plug multus-attached Migrating"),
            ("the migration ends", ""),
            (WAIT, "attached"),
            (STATUS, attached),
            ("operations", "plug"),
        ),
    )
    for versions, ok, attached in IN_EACH
]
MIGRATION += [
    Situation(
        name="migration in the middle of an unplug",
        versions=versions,
        nics=("other", "nic"),
        steps=(
            ("virtctl migrate begins", ""),
            (REMOVE, ok),
            (STATUS, "unplug requested Migrating"),
            ("the migration ends", ""),
            (WAIT, "detached"),
            (STATUS, GONE),
            ("operations", "unplug"),
        ),
    )
    for versions, ok, _ in IN_EACH
]
MIGRATION += [
    Situation(
        name="migration there and back",
        versions=versions,
        nics=("other",),
        steps=(
            (ADD, ok),
            (WAIT, "attached"),
            ("virtctl migrate", ""),
            ("virtctl migrate", ""),
            (STATUS, attached),
            (REMOVE, ok),
            (WAIT, "detached"),
            (STATUS, GONE),
            ("operations", "plug, unplug"),
        ),
    )
    for versions, ok, attached in IN_EACH
]

BY_HAND = UNSERVED + "the change waits until the VM is migrated, which KubeVirt {version} does not do by itself"
EMPTY = (
    UNSERVED
    + FOR_EVER
    + "workloadUpdateMethods in the KubeVirt object is empty; add LiveMigrate there, or migrate the VM"
)
IMMOVABLE = UNSERVED + FOR_EVER + "the VM has to be migrated for it, and " + NOT_MIGRATABLE
THIN = [
    Situation(
        name=f"thin Multus, {name}",
        versions=versions,
        thick=False,
        methods=methods,
        steps=(
            (ADD, f"{BY_HAND}{warning}"),
            (STATUS, "plug pod-annotated WaitingForMultusAttached → virtctl migrate"),
            ("virtctl migrate", ""),
            (WAIT, "attached"),
            ("operations", "plug"),
        ),
    )
    for name, methods in (("no workloadUpdateMethods", ()), ("LiveMigrate", ("LiveMigrate",)), ("Evict", ("Evict",)))
    for versions, warning in (
        (("1.0", "1.1"), ""),
        (("1.3", "1.3"), f"; {RESTARTS}"),
        (("1.5", "1.5"), ""),
    )
]
THIN += [
    Situation(
        name="thin Multus, unplug",
        versions=versions,
        thick=False,
        nics=("other", "nic"),
        steps=(
            (REMOVE, f"{BY_HAND}{warning}"),
            (STATUS, "unplug guest-detached WaitingForMultusDetached → virtctl migrate"),
            ("virtctl migrate", ""),
            (WAIT, "detached"),
            (STATUS, GONE),
            ("operations", "unplug"),
        ),
    )
    for versions, warning in (
        (("1.0", "1.1"), ""),
        (("1.3", "1.3"), f"; {RESTARTS}"),
        (("1.5", "1.5"), ""),
    )
]
THIN += [
    Situation(
        name="thin Multus, no workloadUpdateMethods",
        versions=("1.6", "1.9"),
        thick=False,
        steps=(
            ("the grace waits", ""),
            (ADD, EMPTY),
            (STATUS, "plug pod-annotated WaitingForMultusOrMigration → nothing, if a networks controller"),
            ("the grace goes on", ""),
            (STATUS, "plug pod-annotated MigrationNotConfigured → virtctl migrate"),
            ("virtctl migrate", ""),
            (WAIT, "attached"),
            ("operations", "plug"),
        ),
    ),
    Situation(
        name="thin Multus, unplug, no workloadUpdateMethods",
        versions=("1.6", "1.9"),
        thick=False,
        nics=("other", "nic"),
        steps=(
            (REMOVE, EMPTY),
            (STATUS, "unplug guest-detached MigrationNotConfigured → virtctl migrate"),
            ("virtctl migrate", ""),
            (WAIT, "detached"),
            ("operations", "unplug"),
        ),
    ),
    Situation(
        name="thin Multus, LiveMigrate",
        versions=("1.6", "1.9"),
        thick=False,
        methods=("LiveMigrate",),
        steps=(
            ("the workload update waits", ""),
            (ADD, UNSERVED + "KubeVirt migrates the VM about 25 s after the change"),
            (STATUS, "plug pod-annotated WillMigrate"),
            ("the hand-over waits", ""),
            ("the workload update goes on", ""),
            (STATUS, "plug pod-annotated Migrating"),
            ("the hand-over goes on", ""),
            (WAIT, "attached"),
            (STATUS, ATTACHED),
            ("operations", "plug"),
        ),
    ),
    Situation(
        name="thin Multus, Evict, an evictionStrategy that migrates",
        versions=("1.6", "1.9"),
        thick=False,
        methods=("Evict",),
        eviction="LiveMigrate",
        steps=(
            (ADD, UNSERVED + "KubeVirt evicts the VM about 25 s after the change, which migrates it"),
            (WAIT, "attached"),
            (STATUS, ATTACHED),
            ("operations", "plug"),
        ),
    ),
]

SHUTS_DOWN = (
    "KubeVirt SHUTS THE VM DOWN about 25 s after the change (workloadUpdateMethods allows Evict, its evictionStrategy "
    "is None, and "
)
NO_LIVE_MIGRATE = UNSERVED + SHUTS_DOWN + "LiveMigrate is not allowed)"
IMMOVABLE_EVICT = UNSERVED + SHUTS_DOWN + NOT_MIGRATABLE + ")"
SHUT_DOWN = [
    Situation(
        name=name,
        versions=("1.6", "1.9"),
        thick=False,
        methods=methods,
        migratable=migratable,
        steps=(
            (
                ADD,
                refused(
                    "409 Conflict",
                    warning.removeprefix("Warning: ")
                    + "; to accept that, add --allow-eviction (query allowEviction=true)",
                ),
            ),
            ("the workload update waits", ""),
            (f"{ADD} --allow-eviction", warning),
            (STATUS, "plug pod-annotated WillBeShutDown → take the change back at once"),
            ("the workload update goes on", ""),
            (WAIT, "template"),
            ("the VM is started anew", ""),
            (STATUS, ATTACHED),
            ("operations", "plug"),
        ),
    )
    for name, methods, migratable, warning in (
        ("thin Multus, Evict", ("Evict",), True, NO_LIVE_MIGRATE),
        ("thin Multus, not migratable, Evict", ("Evict",), False, IMMOVABLE_EVICT),
    )
]
WAITS = "WaitingForMultusAttached → with its controller, on node"
SHUT_DOWN += [
    Situation(
        name="thin Multus, unplug, Evict, and Multus answers in time",
        versions=("1.6", "1.9"),
        thick=False,
        methods=("Evict",),
        nics=("other", "nic"),
        steps=(
            ("the workload update waits", ""),
            (f"{REMOVE} --allow-eviction", NO_LIVE_MIGRATE),
            (STATUS, "unplug guest-detached WillBeShutDown → take the change back at once"),
            ("Multus goes on", ""),
            (WAIT, "detached"),
            (STATUS, GONE),
            ("operations", "unplug"),
        ),
    ),
    Situation(
        name="SR-IOV, not migratable, Evict",
        versions=("1.6", "1.9"),
        methods=("Evict",),
        migratable=False,
        steps=(
            ("the workload update waits", ""),
            (EDIT + "add an SR-IOV interface", ""),
            (STATUS, "plug requested WillBeShutDown → take the change back at once"),
            ("the workload update goes on", ""),
            ("the VM is started anew", ""),
            (STATUS, ATTACHED),
        ),
    ),
]
NOT_MIGRATABLE_ROWS = [
    Situation(
        name=f"thin Multus, not migratable, {'LiveMigrate' if methods else 'no workloadUpdateMethods'}",
        versions=versions,
        thick=False,
        methods=methods,
        migratable=False,
        steps=((ADD, f"{IMMOVABLE}{warning}"), (STATUS, f"plug pod-annotated {reason}"), ("operations", "plug")),
    )
    for versions, methods, warning, reason in (
        (("1.0", "1.1"), (), "", WAITS),
        (("1.3", "1.3"), (), f"; {RESTARTS}", WAITS),
        (("1.5", "1.5"), (), "", WAITS),
        (("1.6", "1.9"), (), "", "NotMigratable → restart the VM"),
        (("1.6", "1.9"), ("LiveMigrate",), "", "NotMigratable → restart the VM"),
    )
]

GATE = [
    Situation(
        name="gate off",
        versions=("1.0", "1.3"),
        gates=False,
        steps=(
            (ADD, GATE_OFF),
            (EDIT + "add the interface", ""),
            (STATUS, "plug requested HotplugGateOff → add HotplugNICs"),
        ),
    ),
    Situation(
        name="gate off, which nothing needs any more",
        versions=("1.5", "1.9"),
        gates=False,
        steps=((ADD, OK), (WAIT, "attached"), ("operations", "plug")),
    ),
]

DROPPED = [
    Situation(
        name="dropped without absent",
        versions=("1.0", "1.9"),
        nics=("other", "nic"),
        steps=(
            (EDIT + "take the interface out", ""),
            (STATUS, f"{ATTACHED} DroppedFromTemplate → add it again with the same network default/net1"),
            (
                REMOVE,
                refused(
                    "409 Conflict",
                    "the VM's template lists interface '{nic}' no more, and not as `state: absent`, so KubeVirt "
                    "leaves it in the running VM until the VM restarts; to unplug it now, first add it again (hotnic "
                    "addinterface {vm} --name {nic} --network-attachment-definition-name net1), then remove it",
                ),
            ),
        ),
    ),
    *(
        Situation(
            name="dropped without absent, added again and removed",
            versions=versions,
            nics=("other", "nic"),
            steps=(
                (EDIT + "take the interface out", ""),
                (STATUS, f"{ATTACHED} DroppedFromTemplate → remove it then"),
                (ADD, OK),
                (WAIT, "attached"),
                (STATUS, attached),
                (REMOVE, ok),
                (WAIT, "detached"),
                (STATUS, GONE),
                ("operations", "plug, unplug"),
            ),
        )
        for versions, ok, attached in IN_EACH
    ),
]

TAKEN_BACK = [
    Situation(
        name="plug taken back before Multus has answered",
        versions=versions,
        nics=("other",),
        steps=(
            ("Multus waits", ""),
            (ADD, ok),
            (STATUS, f"plug pod-annotated {waits}"),
            (REMOVE, ok),
            (WAIT, "failed: the interface is being unplugged again"),
            (WAIT, "detached"),
            ("hotnic status, of the pod interface", "plug pod-annotated StrayElement → hotnic doctor --fix"),
            ("Multus goes on", ""),
            ("hotnic status, of the pod interface", "plug multus-attached StrayElement → hotnic doctor --fix"),
            ("operations", "plug, unplug"),
        ),
    )
    for versions, ok, waits in (
        (("1.1", "1.1"), OK, "WaitingForMultusAttached"),
        *IN_EACH_UNSERVED[1:],
    )
]
TAKEN_BACK += [
    Situation(
        name="plug taken back before Multus has answered",
        versions=("1.0", "1.0"),
        nics=("other",),
        steps=(
            ("Multus waits", ""),
            (ADD, OK),
            (STATUS, "plug pod-annotated WaitingForMultusAttached"),
            (REMOVE, OK),
            (WAIT, "failed: the interface is being unplugged again"),
            (WAIT, "detached"),
            (STATUS, GONE),
            ("operations", "plug, unplug"),
        ),
    ),
]
TAKEN_BACK += [
    Situation(
        name="plug of the first interface taken back before Multus has answered",
        versions=versions,
        steps=(
            ("Multus waits", ""),
            (ADD, OK),
            (STATUS, f"plug pod-annotated {waits}"),
            (REMOVE, OK),
            (WAIT, "failed: the interface is being unplugged again"),
            (STATUS, "unplug requested PodNamesUnknown → virtctl migrate"),
            ("Multus goes on", ""),
            (WAIT, "detached"),
            (STATUS, GONE),
            ("operations", "plug, unplug"),
        ),
    )
    # 1.4 and 1.5 drop it from the template at once, as if it were unplugged.
    for versions, _, waits in IN_EACH_UNSERVED[3:]
]
TAKEN_BACK += [
    Situation(
        name="plug taken back before KubeVirt has followed",
        versions=versions,
        steps=(
            ("virt-controller waits", ""),
            (ADD, ok),
            (EDIT + "take the interface out", ""),
            (WAIT, "failed: the VM's template was changed back meanwhile"),
            (STATUS, GONE),
        ),
    )
    for versions, ok, _ in (
        (("1.1", "1.1"), OK, ""),
        *IN_EACH[1:],
    )
]

ALONE = [
    Situation(
        name="a VMI without a VM",
        versions=("1.0", "1.9"),
        alone=True,
        steps=(
            (
                ADD,
                "409 Conflict: Operation cannot be fulfilled on virtualmachineinstance.kubevirt.io "
                '"{vm}": KubeVirt plugs nothing into a VMI without a VM, and refuses every change of a VMI; create a '
                "VirtualMachine in its place",
            ),
        ),
    ),
]

PREFERENCE = [
    *(
        Situation(
            name="interface model from a preference",
            versions=versions,
            preference=True,
            steps=((ADD, ok), (WAIT, "attached"), (STATUS, attached), ("operations", "plug")),
        )
        for versions, ok, attached in IN_EACH
    ),
    *(
        Situation(
            name="interface model from a preference, plug by kubectl",
            versions=versions,
            preference=True,
            steps=((EDIT + "add the interface", ""), (STATUS, attached), ("operations", "plug")),
        )
        for versions, attached in ((("1.1", "1.1"), ATTACHED), (("1.3", "1.3"), IN_EACH[1][2]))
    ),
    Situation(
        name="interface model from a preference, plug by kubectl",
        versions=("1.5", "1.9"),
        preference=True,
        steps=(
            (EDIT + "add the interface", ""),
            (STATUS, f"{ATTACHED} RestartRequiredByPreference → name the preference's model"),
            ("operations", "plug"),
        ),
    ),
]

SITUATIONS = (
    *PLUG,
    *UNPLUG,
    *LAST_UNPLUG,
    *LINK_STATE,
    *NAD_CHANGE,
    *SRIOV,
    *RESTART,
    *MIGRATION,
    *THIN,
    *SHUT_DOWN,
    *NOT_MIGRATABLE_ROWS,
    *GATE,
    *DROPPED,
    *TAKEN_BACK,
    *ALONE,
    *PREFERENCE,
)
