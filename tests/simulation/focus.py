"""Under which faults a mutant shows; see `mutants`."""

from __future__ import annotations

from tests.unit.raft import change_mutants as changes

#: Faults that bring about what a mutant needs to show. With all kinds of faults these take some hundred seeds.
FOCUS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((mutant.__name__ for mutant in changes.CHANGE_MUTANTS), ("grow and cut",)),
    "changes_voters_in_one_step": ("grow and cut",),
    "elects_with_one_majority_while_joint": ("grow and cut",),
    "leaves_joint_before_it_is_committed": ("grow and cut",),
    "keeps_a_membership_that_is_cut_off": ("grow and cut",),
    "installs_a_stale_snapshot": ("overtaken",),
    "acknowledges_a_snapshot_before_it_is_written": ("left behind",),
    "keeps_a_log_that_the_snapshot_contradicts": ("long tail",),
    "forgets_a_snapshots_membership": ("grow and cut", "left behind"),
    "applies_behind_a_snapshot_that_is_not_written": ("overtaken",),
    "cuts_the_log_ahead_of_the_database": ("kill", "left behind"),
    "resets_the_log_before_the_database_switch": ("left behind",),
    "does_not_finish_an_installation": ("left behind",),
    "forgets_the_snapshots_term": ("left behind",),
    "cuts_the_log_without_a_base": ("kill", "left behind"),
    "cleans_more_than_was_forgotten": ("kill", "left behind"),
    "installs_before_it_is_written": ("left behind",),
    "lets_removed_nodes_disturb": ("grow and cut",),
    "tells_an_id_that_may_be_lost": ("grow and cut",),
    "goes_on_with_another_attempts_fragments": ("torn run",),
    "shows_fragments_that_nothing_followed": ("torn run",),
    "commits_older_terms": ("slow then cut",),
    "ends_uploads_that_were_taken": ("clock",),
    "appends_what_is_there_already": ("reset", "split"),
    "cuts_damage_like_a_torn_tail": ("flip", "kill"),
    "forgets_its_vote": ("contest",),
    "forgets_who_was_away": ("split", "reset"),
    "reads_before_the_noop": ("slow then cut",),
    "reads_without_a_round": ("stale leader",),
    "answers_reads_without_the_leader": ("stale leader",),
    "tries_a_failed_sync_again": ("failing sync", "power"),
    "takes_a_lost_answer_for_a_no": ("stale leader", "slow then cut"),
    "takes_an_old_write_for_new_entries": ("slow then cut",),
}
