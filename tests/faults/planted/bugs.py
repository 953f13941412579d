"""Bugs that would break a promise, each as one change of a source, and the tests that must notice it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BUGS", "Bug"]


@dataclass(frozen=True, slots=True)
class Bug:
    """`right` stands once in `file` (from the package's root) and becomes `wrong`; `tests` must then fail.

    promise  what breaks, in a few words
    """

    name: str
    promise: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]


def _bug(name: str, promise: str, file: str, right: str, wrong: str, *tests: str) -> Bug:
    return Bug(name, promise, file, right, wrong, tests)


BUGS = (
    # -- at most once, and never while searching
    _bug("repeats_the_irreversible", "a way back never repeats what happened for real", "search/restore.py",
         "    if effect.needs_commit:\n        raise RestoreUnsupported(",
         "    if False:\n        raise RestoreUnsupported(", "tests/search/test_live.py"),
    _bug("executes_while_searching", "nothing irreversible runs while a live world is searched", "search/execute.py",
         "            if effect.needs_commit:\n", "            if False:\n", "tests/search/test_live.py"),
    _bug("sends_before_it_writes", "what is sent stands in the journal before it is sent", "search/commit.py",
         "            await self.journal.dispatched(entry)\n", "            pass\n", "tests/search/test_commit.py"),
    _bug("doubt_becomes_never_sent", "what may have happened is in doubt", "search/commit.py",
         "        elif entry.state is JournalState.DISPATCHED:\n", "        elif entry.state is None:\n",
         "tests/search/test_commit.py"),
    _bug("two_commits_of_one_node", "two commits of one node send it once", "search/commit.py",
         "            if other.node == node and other.id", "            if other.node == -1 and other.id",
         "tests/search/test_commit.py"),
    _bug("approves_all", "an irreversible action waits for its approval", "search/commit.py",
         "            if not (effect.needs_commit or needs_approval(self.tree, node)):",
         "            if True:", "tests/search/test_commit.py"),
    # -- verified restore
    _bug("arrives_anywhere", "every arrival is checked against the recorded state", "search/restore.py",
         "        if found == point.fingerprint:\n", "        if True:\n", "tests/search/test_engine.py"),
    _bug("lost_session_is_used_on", "a fault leaves the session", "search/execute.py",
         "                return Outcome(\n                    observation=Observation(text=\"\"),\n"
         "                    status=NodeStatus.DRAFT,",
         "                return Outcome(\n                    observation=Observation(text=\"\"),\n"
         "                    status=NodeStatus.OPEN,", "tests/search/test_live.py"),
    # -- exact trees
    _bug("one_seed_for_all_draws", "draws of a node are independent", "search/places.py",
         "    return seed_of(seed, slot)\n", "    return seed_of(seed)\n", "tests/search/test_engine.py"),
    _bug("rewards_are_seen", "truth is sealed while a tree is searched", "search/sealed.py",
         "        return self._truth[node] if self._revealed else math.nan",
         "        return self._truth[node]", "tests/search/test_engine.py", "tests/search/test_rules.py"),
    _bug("broken_logprobs_are_kept", "log-probs that training cannot use are a fault", "search/segments.py",
         "    if whole and (not done.logprobs or", "    if True or (not done.logprobs or",
         "tests/agent/test_policies_capabilities.py"),
    # -- credit
    _bug("baseline_with_itself", "a draw's baseline leaves that draw out", "training/credit/split_loo.py",
         "    baseline = lam_b * _without(above, single * rho, drawn, total)", "    baseline = lam_b * above",
         "tests/training/test_advantage_split_loo.py"),
    _bug("credit_from_broken_trees", "a tree with faults is no data for exact credit", "training/credit/split_loo.py",
         '        arrays.require_exact("split_loo")\n', "        pass\n", "tests/training/test_advantage_split_loo.py"),
    # -- packing and training
    _bug("predicted_by_the_neighbour", "a token is predicted by its parent in the tree", "training/pack.py",
         "        parent=np.where(up >= 0, rank[up], -1).astype(np.int32),",
         "        parent=(np.arange(len(up)) - 1).astype(np.int32),", "tests/training/test_pack_and_step.py"),
    _bug("joined_packs_mix", "trees of a pack do not see each other", "training/packed.py",
         "np.where(p.parent >= 0, place[p.parent], -1)", "np.where(p.parent >= 0, place[p.parent], place[0] - 1)",
         "tests/training/test_pack_and_step.py"),
    _bug("trains_on_nan", "what is not finite never reaches the weights", "training/step.py",
         "        if not math.isfinite(norm):", "        if False:", "tests/training/test_pack_and_step.py"),
    _bug("trains_twice", "each tree is trained on once", "training/step.py",
         "if (t.tree_id, t.header.policy_version) not in self.consumed]", "]",
         "tests/training/test_pack_and_step.py", "tests/training/test_recipes.py"),
    _bug("stale_trees_are_taken", "trees of older weights are refused", "training/versions.py",
         "    if old or strangers:\n", "    if False:\n", "tests/training/test_recipes.py",
         "tests/agent/test_behind.py"),
    _bug("prompts_are_learnt", "an export labels what the policy said, and nothing else", "training/export/rows.py",
         "[UNTRAINED] * len(prompt_ids) + own_ids", "list(prompt_ids) + own_ids", "tests/training/test_export_rows.py",
         "tests/training/test_export_trl.py"),
    # -- many processes
    _bug("running_leases_are_given_again", "a task is leased to one process at a time", "search/store/queue.py",
         "(tasks.c.until < NOW)", "(tasks.c.until > 0)", "tests/search/test_store_writers.py",
         "tests/agent/test_workers.py"),
    # -- kills, and typing the same line again
    _bug("half_an_export", "an export is there whole or not at all", "training/export/dataset.py",
         "    with whole_folder(folder) as part:\n", "    for part in [folder]:\n",
         "tests/faults/test_kill_commands.py"),
    _bug("term_just_ends", "SIGTERM ends a command as Ctrl-C does", "agent/cli/options.py",
         "        signal.signal(signal.SIGTERM, _ended)\n", "        pass\n", "tests/faults/test_kill_commands.py"),
    _bug("forgets_an_update", "an update that was saved is told of after a kill", "agent/cli/training.py",
         "                    metrics.log(lost)", "                    pass", "tests/faults/test_kill_commands.py"),
    _bug("resumes_without_tools", "a resumed search shows the policy what it showed before", "search/places.py",
         "            if self.tree.status[node] is NodeStatus.DRAFT:  # exec", "            if True:  # exec",
         "tests/search/test_resume.py"),
    # -- who may see and reach what
    _bug("every_host_is_listed", "a browser reaches the listed hosts only", "envs/web/guard.py",
         "        return bool(host) and (shown in self.hosts or",
         "        return bool(host) or (shown in self.hosts or",
         "tests/security/test_web_attackers.py", "tests/envs/test_web.py"),
    _bug("viewer_answers_any_name", "a foreign page cannot read the viewer", "agent/view/server.py",
         '        if hosts not in ([f"{HOST}:{port}"], [f"localhost:{port}"]):', "        if False:",
         "tests/agent/test_view.py"),
    _bug("learned_secrets_are_stored", "secrets that came in by a file stay out of stores and logs", "envs/redact.py",
         "        if self._follows and (known := learned_count()) != self._known:", "        if known := 0:",
         "tests/security/test_canaries.py"),
    _bug("sessions_stay_open", "what a run opened is closed when it ends", "search/restore.py",
         "        await asyncio.gather(*(s.env.close() for s in idle), return_exceptions=True)",
         "        await asyncio.sleep(0)", "tests/faults/test_soak.py"),
    _bug("gateway_needs_no_key", "the gateway refuses requests without its key", "agent/gateway/server.py",
         "    if not hmac.compare_digest(", "    if None is hmac.compare_digest(",
         "tests/agent/test_gateway_record.py"),
    # -- bad networks and outside data
    _bug("a_gateway_answers_for_the_server", "what the network answers is a fault, and no answer of a tool",
         "envs/tools/connection.py", "                if self.over.trouble:\n", "                if False:\n",
         "tests/faults/test_networks.py"),
    _bug("a_lost_page_is_shown", "a page that the network lost is a fault, and no blank page", "envs/web/tab.py",
         "        if self.traffic.lost:\n", "        if False:\n", "tests/faults/test_networks.py"),
    _bug("a_drip_outlives_its_time", "an attempt ends at its time-out, however slowly the answer comes",
         "agent/policies/transport.py", "            async with asyncio.timeout(patience):",
         "            async with asyncio.timeout(None):", "tests/faults/test_networks.py"),
    _bug("deep_json_breaks_what_walks_it", "data from outside is an error of ours, however deep it is", "envs/lines.py",
         "            raise RecursionError\n        return value", "            pass\n        return value",
         "tests/envs/test_lines.py"),
    _bug("unknown_effects_are_read", "a tool that says nothing is not explored", "envs/tools/listing.py",
         "        if not self.trust_hints or hints is None:\n            return Effect.UNKNOWN",
         "        if not self.trust_hints or hints is None:\n            return Effect.READ",
         "tests/envs/test_tools_mcp.py", "tests/envs/test_mcp_suite.py", "tests/faults/test_ledger_command.py"),
)  # fmt: skip
