"""Apply a step: patch an object, with the rights of the user's kubeconfig, or change this node as root.

Each step has a deadline, and none is repeated here. Next: :mod:`services.cli.doctor.fix.node`, the changes of the node.
"""

import asyncio
from enum import StrEnum

import msgspec

from schemas.kubernetes.objects import PODS, VMIS, VMS
from services.cli.doctor.collect.node_files import NodeSettings
from services.cli.doctor.fix import node
from services.cli.doctor.fix.plan import FixStep, ObjectPatch
from services.common.kube.client import Kube
from services.common.kube.denials import is_missing_permission
from services.common.kube.errors import Conflict, KubeError, NotFound, PatchTestFailed
from services.common.kube.session.transport import JSON_PATCH

STEP_DEADLINE = 30.0
"""Seconds for one step."""

_RESOURCES = {resource.kind: resource for resource in (PODS, VMS, VMIS)}


class FixOutcome(StrEnum):
    """How a step ended."""

    FIXED = "fixed"
    WOULD_FIX = "would fix"
    CHANGED = "changed meanwhile"
    """The subject is not as it was examined, so nothing was done."""
    FAILED = "failed"


class FixResult(msgspec.Struct, frozen=True):
    """The result of a step.

    :ivar message: the cause, where nothing was done.
    """

    outcome: FixOutcome
    message: str = ""


class StepApplier:
    """Applies steps.

    :param dry_run: have the API server check each patch without storing it, and change nothing on the node.
    """

    def __init__(self, kube: Kube, paths: NodeSettings, *, dry_run: bool) -> None:
        self._kube = kube
        self._paths = paths
        self._dry_run = dry_run

    async def apply(self, step: FixStep) -> FixResult:
        """Apply a step and return its result; errors are results, too."""
        done = FixResult(FixOutcome.WOULD_FIX if self._dry_run else FixOutcome.FIXED)
        try:
            async with asyncio.timeout(STEP_DEADLINE):
                if isinstance(step, ObjectPatch):
                    await self._patch(step)
                elif not self._dry_run:
                    await node.apply_change(step, self._paths)
        except (PatchTestFailed, Conflict, NotFound, node.SubjectChanged) as error:
            return FixResult(FixOutcome.CHANGED, str(error))
        except KubeError as error:
            return FixResult(FixOutcome.FAILED, refusal_text(error, step))
        except node.NodeChangeFailed as error:
            return FixResult(FixOutcome.FAILED, str(error))
        except TimeoutError:
            return FixResult(FixOutcome.FAILED, f"not done within {STEP_DEADLINE:g} s")
        return done

    async def _patch(self, patch: ObjectPatch) -> None:
        resource = _RESOURCES[patch.target.kind]
        await self._kube.request(
            "PATCH",
            resource.path(patch.target.namespace, patch.target.name),
            query={"dryRun": "All"} if self._dry_run else None,
            body=list(patch.ops),
            content_type=JSON_PATCH,
            span=f"kube patch {resource.plural}",
        )


def refusal_text(error: KubeError, step: FixStep) -> str:
    """Return the cause of an error; for a missing permission with the right that it takes, and how to get it."""
    if not isinstance(step, ObjectPatch) or not is_missing_permission(error):
        return error.message
    resource, namespace = _RESOURCES[step.target.kind], step.target.namespace
    name = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
    return (
        f"you may not patch {name} in namespace {namespace} (check: kubectl auth can-i patch {name} -n {namespace}); "
        f"use a context with that right, or have a role with it bound to you: kubectl create role hotnic-doctor "
        f"--verb=patch --resource={name} -n {namespace}"
    )
