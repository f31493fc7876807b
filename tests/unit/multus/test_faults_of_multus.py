"""The known faults of multus-cni's thick plugin, each with the tests that hold it off here.

A number is that of an issue or pull request of multus-cni (``nad`` and ``dnc``: of its sister projects). What is
checked is that each of these tests exists; that they pass is their own business.
"""

import re
from pathlib import Path

import pytest

FAULTS = {
    "the daemon's configuration is laid over every network's": [
        "test_pod_networks.py::test_the_daemons_own_settings_never_reach_a_plugin"
    ],
    "what was hot-plugged is not undone with the sandbox": [
        "test_cni_calls.py::test_add_attaches_all_networks_in_order_and_says_so_on_the_pod"
    ],
    "hot-plug needs the caller to repeat the configuration of ADD, or cleans nothing": [
        "test_delegate_calls.py::test_del_needs_no_configuration",
        "test_delegate_calls.py::test_attributes_reach_the_plugin",
    ],
    "a second ADD of the same attachment is an error": ["test_delegate_calls.py::test_add_twice_is_one_attachment"],
    "DEL by name destroys a link that somebody else made": [
        "test_delegate_calls.py::test_a_link_that_is_not_ours_is_never_touched",
        "test_multus_plan.py::test_no_link_but_ours_and_its_stand_in_is_ever_touched",
    ],
    "1080: DEL without a daemon leaks": [
        "test_cni_calls.py::test_a_sandbox_that_went_while_the_daemon_was_away_is_undone",
        "test_multus_process.py::test_a_sandbox_lives_through_a_restart_of_the_daemon",
        "test_sweep.py::test_a_sandbox_that_the_runtime_has_lost_is_undone",
    ],
    "calls for one container run beside each other": [
        "test_delegate_calls.py::test_calls_for_one_sandbox_come_one_after_the_other",
        "test_multus_locks.py::test_gc_waits_for_calls_and_holds_new_ones_back",
    ],
    "CNI codes are lost on their way to the runtime": [
        "test_cni_conformance.py::test_a_plugins_error_reaches_the_runtime_with_its_code",
        "test_cni_conformance.py::test_status_says_why_the_network_is_not_ready",
    ],
    "1221: installing the shim over a running one fails, text file busy": [
        "test_multus_autoconfig.py::test_the_shim_is_installed_whole_and_only_when_it_has_changed"
    ],
    "a plugin that stays busy counts as a success": [
        "test_multus_executor.py::test_a_file_that_is_being_written_is_tried_again",
        "test_multus_executor.py::test_a_file_that_stays_busy_is_a_failure",
    ],
    "1346: a burst of pods exhausts the daemon's memory": [
        "test_pod_networks.py::test_no_more_calls_run_than_the_limit_allows",
        "test_multus_memory.py::test_malformed_requests_leave_no_memory_behind",
    ],
    "1527: pods made while the daemon restarts lose their networks": [
        "test_multus_process.py::test_a_sandbox_lives_through_a_restart_of_the_daemon",
        "test_multus_process.py::test_add_waits_for_a_daemon_that_is_just_starting",
    ],
    "1449: DEL and CHECK see a list without its plugins' keys": [
        "test_real_plugins.py::test_a_nad_of_kube_ovn_with_portmap",
        "test_upstream_takeover.py::test_del_after_the_switch_from_multus_cni_cleans_everything",
    ],
    "1525: the daemon dies between the readiness question and the call": [
        "test_multus_shim.py::test_a_daemon_that_goes_between_its_health_answer_and_the_call_is_waited_for",
        "test_multus_process.py::test_a_call_under_way_is_finished_before_the_daemon_ends",
    ],
    "1165: a stale socket refuses pods for ever": [
        "test_multus_process.py::test_add_waits_for_a_daemon_that_is_just_starting"
    ],
    "1087: a torn cache makes DEL do nothing": [
        "test_multus_records.py::test_a_torn_unsettled_record_falls_back_to_the_settled_one",
        "test_upstream_takeover.py::test_del_of_a_sandbox_that_was_not_taken_over_reads_multus_cnis_files",
        "test_cni_calls.py::test_del_without_a_record_frees_what_the_pod_still_names",
    ],
    "1361: the daemon serves from a cache that never filled": [
        "test_cni_calls.py::test_add_waits_for_a_pod_and_then_gives_up"
    ],
    "1089: retries collide with what a failed attempt has left": [
        "test_delegate_calls.py::test_a_failed_add_undoes_what_it_has_made",
        "test_multus_plan.py::test_a_lost_link_and_an_add_that_was_cut_off_are_undone_and_made_anew",
    ],
    "1366, 1143: with a path in multusConfigFile the daemon ends": [
        "test_daemon_config.py::test_a_finished_configuration_is_copied_and_the_daemon_goes_on"
    ],
    "dnc 96: a restart purges the socket's directory": [
        "test_multus_process.py::test_a_sandbox_lives_through_a_restart_of_the_daemon"
    ],
    "1552: the chosen default route never replaces the old one": [
        "test_default_routes.py::test_the_chosen_network_carries_the_default_route_and_the_old_one_is_gone"
    ],
    "1011: an empty default-route wipes every default route": [
        "test_default_routes.py::test_an_empty_list_leaves_the_default_route_of_eth0"
    ],
    "default routes of the other address family are deleted": [
        "test_default_routes.py::test_each_family_can_have_another_network"
    ],
    "1320: a bad daemon-config.json gives no log": [
        "test_multus_autoconfig.py::test_a_bad_file_is_a_settings_error",
        "test_daemon_config.py::test_what_cannot_be_done_is_refused_with_its_reason",
    ],
    "1306: killing the daemon during ADD leaves half a pod": [
        "test_multus_process.py::test_an_add_that_was_cut_off_by_a_kill_is_undone"
    ],
    "a status that cannot be written leaves the links": [
        "test_cni_calls.py::test_a_status_that_cannot_be_written_undoes_the_sandbox"
    ],
    "dnc 157: a status is written from a stale pod object": [
        "test_pod_networks.py::test_the_status_is_written_at_the_version_that_was_read",
        "test_pod_networks.py::test_nothing_is_written_on_a_pod_that_has_taken_the_name",
    ],
    "the exemption of system namespaces compares the pod's name": [
        "test_pod_networks.py::test_default_networks_are_not_for_pods_of_system_namespaces"
    ],
    "CHECK does nothing with a cluster network": ["test_cni_calls.py::test_check_asks_every_plugin_of_the_sandbox"],
    "GC collects nothing, because the cache itself says what is valid": [
        "test_cni_calls.py::test_gc_undoes_what_the_runtime_does_not_know",
        "test_pod_networks.py::test_gc_reaches_the_secondary_networks",
    ],
    "a plugin that hangs is waited for without end": ["test_delegate_calls.py::test_a_plugin_that_hangs_is_killed"],
    "isolation compares with the namespaces that are not global": [
        "test_cni_calls.py::test_isolation_and_default_networks"
    ],
    "a gateway of a default route is written as <nil>": [
        "test_pod_nic_from_result.py::test_network_status_has_the_sandbox_link_and_its_addresses"
    ],
    "1308: plugins run in a directory outside of their root": [
        "test_pod_networks.py::test_plugins_are_found_and_run_inside_the_nodes_root"
    ],
    "kubevirt 14074: DEL under a card that a guest uses leaves the real link": [
        "test_wired_links.py::test_del_of_a_wired_link_is_refused_and_changes_nothing",
        "test_wired_links.py::test_del_of_a_renamed_link_finds_the_link_itself",
    ],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_known_fault_has_its_tests(fault: str) -> None:
    for test in FAULTS[fault]:
        file, _, name = test.partition("::")
        [path] = Path("tests").glob(f"*/multus/{file}")
        assert re.search(rf"^(async )?def {name}\(", path.read_text(), re.MULTILINE), test
