"""Pure decisions that several roles share: no await, no clock, no I/O. Imports only ``schemas``.

Start with :mod:`services.common.domain.operations` (which operation, which pod), then
:mod:`services.common.domain.attachments` (which attachments a pod should have) and
:mod:`services.common.domain.hotplug_status` (what the user sees of it).
"""
