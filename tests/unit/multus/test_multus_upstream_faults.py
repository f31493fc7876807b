"""Known faults of multus-cni's thick plugin, each with the tests that prove that hotnic does not have it.

A number is an issue or pull request of multus-cni (``nad`` and ``dnc``: of its sister projects). This module checks
only that each of these tests exists.
"""

import re
from pathlib import Path

import pytest

FAULTS = {
    "the daemon's configuration is laid over that of every network": [
        "test_pod_networks.py::test_daemon_settings_never_reach_a_plugin"
    ],
    "hot-plugged attachments are not deleted with the sandbox": [
        "test_cni_calls.py::test_add_attaches_all_networks_and_writes_network_status"
    ],
    "DEL of a hot-plugged attachment needs the configuration of ADD again, or cleans nothing": [
        "test_delegate_calls.py::test_del_needs_no_configuration",
        "test_delegate_calls.py::test_attributes_reach_the_plugin",
    ],
    "a second ADD of the same attachment is an error": [
        "test_delegate_calls.py::test_a_repeated_add_is_one_attachment"
    ],
    "DEL by name destroys a foreign link": [
        "test_delegate_calls.py::test_a_foreign_link_is_never_touched",
        "test_multus_plan.py::test_delete_touches_only_the_recorded_link_and_its_dummy",
    ],
    "1080: DEL without a daemon leaks": [
        "test_cni_calls.py::test_the_sweep_deletes_a_sandbox_without_a_namespace",
        "test_multus_process.py::test_a_sandbox_survives_a_restart_of_the_daemon",
        "test_sweep.py::test_a_sandbox_lost_by_the_runtime_is_deleted",
    ],
    "calls for one container run at the same time": [
        "test_delegate_calls.py::test_calls_for_one_sandbox_run_one_after_the_other",
        "test_multus_locks.py::test_gc_waits_for_running_calls_and_blocks_new_ones",
    ],
    "CNI error codes do not reach the runtime": [
        "test_cni_conformance.py::test_a_plugins_error_code_reaches_the_runtime",
        "test_cni_conformance.py::test_status_reports_why_the_network_is_not_ready",
    ],
    "1221: installing the shim over a running one fails, text file busy": [
        "test_node_files.py::test_a_program_is_replaced_while_copies_of_it_run",
        "test_node_files.py::test_a_program_is_written_once_with_its_mode",
    ],
    "a plugin that stays busy counts as a success": [
        "test_multus_executor.py::test_a_plugin_file_that_is_being_written_is_retried",
        "test_multus_executor.py::test_a_plugin_file_that_stays_busy_is_an_error",
    ],
    "1346: a burst of pods exhausts the daemon's memory": [
        "test_pod_networks.py::test_connection_limit_bounds_running_calls",
        "test_multus_memory.py::test_malformed_requests_do_not_grow_memory",
    ],
    "1312: the daemon starts before the primary network's configuration exists": [
        "test_multus_process.py::test_the_daemon_waits_for_the_primary_network"
    ],
    "1429, 1146: a node without its daemon creates no pods and says nothing": [
        "test_multus_shim.py::test_a_call_without_a_daemon_says_what_to_delete",
        "test_multus_shim.py::test_del_always_succeeds",
        "test_node_commands.py::test_clean_removes_what_is_hotnics_and_reports_what_stays",
    ],
    "1527: pods created while the daemon restarts lose their networks": [
        "test_multus_process.py::test_a_sandbox_survives_a_restart_of_the_daemon",
        "test_multus_process.py::test_add_waits_for_a_starting_daemon",
    ],
    "1449: DEL and CHECK get a list without its plugins' keys": [
        "test_real_plugins.py::test_a_kube_ovn_nad_with_portmap",
        "test_adoption.py::test_del_after_adoption_cleans_everything",
    ],
    "1525: the daemon dies between the health check and the call": [
        "test_multus_shim.py::test_add_retries_when_the_daemon_ends_before_the_call",
        "test_multus_process.py::test_a_running_call_finishes_before_the_daemon_ends",
    ],
    "1165: with a stale socket, pods are refused for ever": [
        "test_multus_process.py::test_add_waits_for_a_starting_daemon"
    ],
    "1087: a torn cache makes DEL do nothing": [
        "test_multus_records.py::test_a_torn_unsettled_record_falls_back_to_the_settled_one",
        "test_adoption.py::test_del_of_a_sandbox_not_adopted_yet_reads_upstreams_files",
        "test_cni_calls.py::test_del_without_a_record_frees_the_pods_networks",
    ],
    "1361: the daemon serves from an informer cache that was never filled": [
        "test_cni_calls.py::test_add_waits_for_an_unknown_pod_and_fails"
    ],
    "1089: retries collide with leftovers of a failed attempt": [
        "test_delegate_calls.py::test_a_failed_add_is_rolled_back",
        "test_multus_plan.py::test_add_recreates_a_lost_link_and_an_interrupted_attachment",
    ],
    "1366, 1143: with a path in multusConfigFile the daemon ends": [
        "test_daemon_config.py::test_a_finished_configuration_is_copied"
    ],
    "dnc 96: a restart purges the socket's directory": [
        "test_multus_process.py::test_a_sandbox_survives_a_restart_of_the_daemon"
    ],
    "1552: the chosen default route never replaces the old one": [
        "test_default_routes.py::test_the_chosen_network_replaces_the_default_route"
    ],
    "1011: an empty default-route wipes every default route": [
        "test_default_routes.py::test_an_empty_list_leaves_the_default_route_of_eth0"
    ],
    "default routes of the other address family are deleted": [
        "test_default_routes.py::test_each_family_can_use_another_network"
    ],
    "1320: a bad daemon-config.json gives no log": [
        "test_multus_autoconfig.py::test_a_bad_file_is_a_settings_error",
        "test_daemon_config.py::test_unsupported_values_are_refused_with_a_reason",
    ],
    "1306: killing the daemon during ADD leaves half a pod": [
        "test_multus_process.py::test_an_add_interrupted_by_a_kill_is_rolled_back"
    ],
    "a status that cannot be written leaves the links": [
        "test_cni_calls.py::test_add_is_rolled_back_when_the_status_cannot_be_written"
    ],
    "dnc 157: a status is written from a stale pod object": [
        "test_pod_networks.py::test_the_status_patch_requires_the_version_that_was_read",
        "test_pod_networks.py::test_nothing_is_written_to_another_pod_of_that_name",
    ],
    "the exemption of system namespaces compares the pod's name": [
        "test_pod_networks.py::test_pods_of_system_namespaces_get_no_default_networks"
    ],
    "CHECK does nothing with a cluster network": ["test_cni_calls.py::test_check_runs_every_plugin_of_the_sandbox"],
    "GC collects nothing, because the cache itself says what is valid": [
        "test_cni_calls.py::test_gc_deletes_sandboxes_that_the_runtime_does_not_list",
        "test_pod_networks.py::test_gc_runs_for_secondary_networks",
    ],
    "the daemon waits for a hanging plugin without a limit": [
        "test_delegate_calls.py::test_a_plugin_that_hangs_is_killed"
    ],
    "namespace isolation compares with the namespaces that are not global": [
        "test_cni_calls.py::test_namespace_isolation_and_default_networks"
    ],
    "a gateway of a default route is written as <nil>": [
        "test_pod_nic_from_result.py::test_network_status_has_the_sandbox_link_and_its_addresses"
    ],
    "1308: plugins run in a directory outside of their root": [
        "test_pod_networks.py::test_plugins_are_found_and_run_inside_the_nodes_root"
    ],
    "kubevirt 14074: DEL of an interface in use by a guest leaves the real link behind": [
        "test_bridged_links.py::test_del_of_a_bridged_link_is_refused_and_changes_nothing",
        "test_bridged_links.py::test_del_of_a_renamed_link_finds_the_link_itself",
    ],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_known_fault_has_its_tests(fault: str) -> None:
    for test in FAULTS[fault]:
        file, _, name = test.partition("::")
        [path] = Path("tests").glob(f"*/*/{file}")
        assert re.search(rf"^(async )?def {name}\(", path.read_text(), re.MULTILINE), test
