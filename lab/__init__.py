"""The lab: a Kubernetes cluster for development on one machine, in namespaces of its own.

`cli/` has the commands `hotnic lab …`, `namespaces/` what happens outside of the lab's namespaces (lock, listeners,
`unshare`), `supervisor/` what happens inside (which processes run, in which order, with which configuration); read them
in this order. `apiserver/` and `node/` replace the control plane and the node agents of a real cluster; `guest/` builds
and boots the guests; `crds/` are shaped like those of KubeVirt and Multus; `examples` is a link to `k8s/examples`;
`failpoints/` lets tests kill the roles. `layout.py` has the paths of a lab, `tools.py` those of its tools. docs/lab.md
lists which parts are real and which are replaced.

This is the distribution `hotnic-lab`. Nothing in `services` imports it, and no code outside of it may depend on
whether a cluster is the lab.
"""
