"""Pure decisions that several roles share: no await, no clock, no I/O. Imports only ``schemas``.

Start with :mod:`services.common.domain.operations` (the operation of an interface, the acting pod of a VMI), then
:mod:`services.common.domain.nic` (the parsed VMI and pod, which everything else reads),
:mod:`services.common.domain.attachments` (the attachments that a pod should have) and
:mod:`services.common.domain.status.hotplug_status` (the stages that users see).
"""
