"""Values that cannot work are refused when the chart is rendered, with one sentence that says what to change."""

import pytest

from tests.support.interop.chart import CHART, KUBERNETES, NATS, ROLES, helm

OWNER = "vmOwner=hotnic"
TLS = "nats.url=tls://nats.nats:4222"
UNSET_OWNER = (
    "vmOwner is not set, and it is never guessed; set it to kubevirt where KubeVirt runs (KubeVirt hot-plugs the "
    "interfaces of VMs), or to hotnic where no KubeVirt component runs (hotnic does); each file in k8s/choices sets it"
)


def hidden(value: str, path: str, usual: str) -> str:
    """Return the refusal of a directory that would hide a part of multus' pod."""
    return (
        f"{value} is {path}, and the pod of multus has files of its own there, which the node's directory would hide; "
        f"set {value} to a directory that holds nothing else, such as {usual}"
    )


@pytest.mark.parametrize("program", ["helm", "helm3"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], UNSET_OWNER),
        ([NATS], UNSET_OWNER),
        (["vmOwner=auto", NATS], "vmOwner': value must be one of"),
        ([OWNER], "nats.url is not set, but api publishes events"),
        ([OWNER, "api.enabled=false"], "nats.url is not set, but controller publishes events"),
        (["vmOwner=kubevirt", NATS, "crds.kubevirt=true"], "KubeVirt installs its own CRDs"),
        (["vmOwner=kubevirt", NATS, "api.claimKubevirtGroup=true"], "set api.claimKubevirtGroup to false"),
        ([OWNER, NATS, "controller.enabled=false"], "api.enabled is true and controller.enabled is false"),
        (
            [OWNER, NATS, "controller.enabled=false,api.enabled=false"],
            "handler.enabled is true and controller.enabled is false",
        ),
        ([OWNER, NATS, "multus.enabled=false"], "networks.upstreamMultus.socketDir"),
        ([OWNER, NATS, "networks.upstreamMultus.socketDir=/run/multus"], "a node has one multus daemon"),
        (
            [OWNER, NATS, "multus.enabled=false,networks.upstreamMultus.socketDir=/run/multus,node.process=single"],
            "it is the pods of multus that run the other roles",
        ),
        (
            [OWNER, NATS, "multus.enabled=false,networks.upstreamMultus.socketDir=/run/multus"],
            "name its account in admission.trusted.users",
        ),
        ([OWNER, NATS, "admission.trusted.users={it's}"], "admission/trusted/users"),
        ([OWNER, NATS, "node.process=shared"], "node/process"),
        (
            [OWNER, *(f"{role}.enabled=false" for role in ROLES)],
            "no role is enabled",
        ),
        ([OWNER, NATS, "multus.config.chrootDir=/"], "multus.config.chrootDir is set"),
        (
            ["vmOwner=kubevirt", "api.enabled=false,controller.enabled=false", "nats.credentials.secret=creds"],
            "nats.credentials.secret is set and nats.url is not",
        ),
        (
            ["vmOwner=kubevirt", "api.enabled=false,controller.enabled=false", "nats.authCallout.secret=keys"],
            "nats.authCallout.secret is set and nats.url is not",
        ),
        (
            ["vmOwner=kubevirt", TLS, "api.enabled=false,controller.enabled=false", "nats.authCallout.secret=keys"],
            "it is the api that answers the auth callout",
        ),
        ([OWNER, TLS, "nats.authCallout.secret=a,nats.credentials.secret=b"], "a role connects in one way"),
        ([OWNER, NATS, "nats.authCallout.secret=keys"], "set nats.url to addresses with tls:// or wss://"),
        (
            [OWNER, "nats.url=tls://a:4222\\,ws://b:80", "nats.authCallout.secret=keys"],
            "set nats.url to addresses with tls:// or wss://",
        ),
        ([OWNER, TLS, "nats.authCallout.tokenSeconds=60"], "nats/authCallout/tokenSeconds"),
        ([OWNER, NATS, "cniConfDir=/etc"], hidden("cniConfDir", "/etc", "/etc/cni/net.d")),
        ([OWNER, NATS, "cniConfDir=/etc/cni/.."], hidden("cniConfDir", "/etc/cni/..", "/etc/cni/net.d")),
        ([OWNER, NATS, "cniConfDir=/opt/hotnic/etc"], hidden("cniConfDir", "/opt/hotnic/etc", "/etc/cni/net.d")),
        ([OWNER, NATS, "multus.socketDir=/run"], hidden("multus.socketDir", "/run", "/run/multus")),
        ([OWNER, NATS, "multus.socketDir=/var/run"], hidden("multus.socketDir", "/var/run", "/run/multus")),
        ([OWNER, NATS, "multus.stateDir=/var"], hidden("multus.stateDir", "/var", "/var/lib/cni/multus")),
        ([OWNER, NATS, "multus.stateDir=/usr/lib"], hidden("multus.stateDir", "/usr/lib", "/var/lib/cni/multus")),
        # The schema.
        ([OWNER, NATS, "criSocket=/crio.sock"], "criSocket"),
        ([OWNER, NATS, "netnsDir=/"], "netnsDir"),
        ([OWNER, NATS, "kubeletDir=/"], "kubeletDir"),
        ([OWNER, "nats.url=nats://user:password@nats:4222"], "nats/url"),
        ([OWNER, "nats.url=http://nats:4222"], "nats/url"),
        ([OWNER, NATS, "tracing.endpoint=http://:4318"], "tracing/endpoint"),
        ([OWNER, NATS, "image.tag=latest"], "image/tag"),
        ([OWNER, NATS, "criSocket=unix:///run/containerd/containerd.sock"], "criSocket"),
        ([OWNER, NATS, "cniBinDir=opt/cni/bin"], "cniBinDir"),
        ([OWNER, NATS, "multus.connectionLimit=0"], "multus/connectionLimit"),
        ([OWNER, NATS, "apis.replicas=2"], "apis"),
        ([OWNER, NATS, "api.replica=2"], "replica"),
        ([OWNER, NATS, "certificates.provider=helm"], "certificates/provider"),
        ([OWNER, NATS, "fullnameOverride=Foo_Bar"], "fullnameOverride"),
        ([OWNER, NATS, f"nameOverride={'n' * 64}"], "nameOverride"),
        ([OWNER, NATS, "namespaceIsolation.globalNamespaces[0]=a: b"], "globalNamespaces"),
        ([OWNER, NATS, "test.network=bridge"], "test.network is not a JSON object"),
    ],
)
def test_values_are_refused(program: str, values: list[str], message: str) -> None:
    arguments = [argument for value in values for argument in ("--set", value)]
    command = ["template", "hotnic", str(CHART), "--kube-version", KUBERNETES["newest"], *arguments]
    done = helm(*command, program=program, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    # Helm 3 writes `nats.url` where helm 4 writes `/nats/url`.
    assert message.replace("/", ".") in done.stderr.replace("/", "."), done.stderr


def test_no_global_namespace_is_refused_because_the_roles_would_use_their_default() -> None:
    values = ["--set", OWNER, "--set", NATS, "--set-json", "namespaceIsolation.globalNamespaces=[]"]
    done = helm("template", "hotnic", str(CHART), "--kube-version", KUBERNETES["newest"], *values, check=False)
    assert done.returncode != 0
    assert "globalNamespaces" in done.stderr


@pytest.mark.parametrize("release", ["my.release", "1st"])
def test_a_release_name_that_no_service_can_have_is_refused(release: str) -> None:
    command = ["template", release, str(CHART), "--kube-version", KUBERNETES["newest"], "--set", OWNER, "--set", NATS]
    done = helm(*command, check=False)
    assert done.returncode != 0
    assert f"{release}-hotnic is not a name of a Service" in done.stderr
    assert helm(*command, "--set", "fullnameOverride=nics").stdout
