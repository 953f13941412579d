"""Actions by construction and by repair; the distribution that a masked draw comes from is the one recorded."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

pytest.importorskip("llguidance")

from closeness import assert_near

from treewright.agent.policies.actions import action_grammar, action_schema, repair_action
from treewright.agent.policies.grammar import DraftingGrammarPolicy, GrammarPolicy
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.policy import SEEDLING
from treewright.agent.runs.collect import collect, open_worlds
from treewright.agent.runs.loop import tasks_for
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.engine import Settings
from treewright.search.rules import best_first
from treewright.search.screen import parse_action, validate_action
from treewright.search.types import Budget

from .small import compact, qwen3

TASK = Task("kg", "1", "Who is ada's mother?")
PICK = ToolSpec("pick", "", {"type": "object", "properties": {"n": {"enum": [1, 2, 30]}}, "required": ["n"]})
GO = ToolSpec("go", "", {"type": "object", "properties": {"far": {"type": "boolean"}}, "required": ["far"]})
TOOLS = (PICK, GO)
WAYS = ['pick {"n": 1}', 'pick {"n": 2}', 'pick {"n": 30}', 'go {"far": true}', 'go {"far": false}']


@pytest.fixture(scope="module")
def policy() -> GrammarPolicy:
    return GrammarPolicy(qwen3(), compact(), name="g")


async def drawn(policy: Any, count: int, max_tokens: int = 64, seed: int = 0) -> tuple[Any, Any]:
    context = policy.context(TASK, TOOLS, Observation("start"), (), ())
    return context, await policy.draw(context, range(seed, seed + count), max_tokens)


async def test_every_draw_is_an_action_and_draws_differ(policy: GrammarPolicy) -> None:
    _, done = await drawn(policy, 200)
    said = Counter(c.text for c in done)
    assert set(said) <= set(WAYS) and len(said) >= 3
    assert all(c.finish_reason == "stop" and c.trainable for c in done)
    assert policy.sampling == {"grammar": "actions of the node's tools"}


async def test_recorded_log_probs_are_those_of_the_masked_distribution(policy: GrammarPolicy) -> None:
    """Apart from the sampler: one forward pass over the whole draw, masked by a fresh matcher's word at each place."""
    from llguidance import LLMatcher

    context, done = await drawn(policy, 12)
    start, choices = len(context.ids) - 1, 0
    for one in done:
        matcher = LLMatcher(policy._tokens, action_grammar(TOOLS))
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([context.ids + one.token_ids])).logits[0, start:]
        for at, token in enumerate(one.token_ids):
            bits = matcher.compute_bitmask()
            allowed = [t for t in range(logits.shape[1]) if bits[t // 8] >> (t % 8) & 1]
            own = logits[at][token] - logits[at][allowed].logsumexp(0)
            assert token in allowed and one.logprobs[at] == pytest.approx(
                float(own), abs=1e-5 * float(logits[at].abs().max())
            )
            choices += len(allowed) > 1
            matcher.consume_token(token)
    assert choices > len(done)


async def test_draws_follow_the_recorded_distribution(policy: GrammarPolicy) -> None:
    """Among texts drawn in one way only, the ratio of frequencies is that of their probabilities."""
    _, done = await drawn(policy, 3000, seed=10_000)
    count = Counter(c.token_ids for c in done)
    p = {c.token_ids: math.exp(c.logprob) for c in done}
    assert sum(p.values()) <= 1 + 1e-6
    for ids, times in count.most_common(4):
        spread = 4 * math.sqrt(p[ids] * (1 - p[ids]) / len(done))
        assert abs(times / len(done) - p[ids]) < spread


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
async def test_drafts_change_no_draw_under_a_grammar_and_save_passes(policy: GrammarPolicy, temperature: float) -> None:
    fast = DraftingGrammarPolicy(qwen3(), compact(), temperature=temperature)
    policy.temperature = temperature
    try:
        for seed in (0, 40):
            fast.passes = fast.checked = 0
            (_, want), (_, got) = await drawn(policy, 40, seed=seed), await drawn(fast, 40, seed=seed)
            for a, b in zip(got, want, strict=True):
                assert (a.token_ids, a.finish_reason, a.trainable) == (b.token_ids, b.finish_reason, b.trainable)
                assert_near(a.logprobs, b.logprobs)
        assert fast.tokens_per_pass > 1.5
        _, (cut,) = await drawn(fast, 1, max_tokens=2)
        assert cut.finish_reason == "length" and len(cut.token_ids) == 2
    finally:
        policy.temperature = 1.0
    await fast.close()


@torch.no_grad()
def every_draw(policy: DraftingGrammarPolicy, prompt: tuple[int, ...]) -> dict[tuple[int, ...], float]:
    """Every response that the grammar allows with its probability, by walking all of them."""
    from llguidance import LLMatcher

    found: dict[tuple[int, ...], float] = {}
    left: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    while left:
        said, logp = left.pop()
        if said and said[-1] in policy.stop_ids:
            found[said] = math.exp(logp)
            continue
        matcher = LLMatcher(policy._tokens, action_grammar(TOOLS[1:]))
        assert matcher.consume_tokens(list(said)) or not said
        bits = matcher.compute_bitmask()
        logits = policy.model(input_ids=torch.tensor([[*prompt, *said]])).logits[0, -1]
        kept = [t for t in range(len(logits)) if bits[t // 8] >> (t % 8) & 1]
        own = logits[kept].log_softmax(0).tolist()
        left += [((*said, t), logp + p) for t, p in zip(kept, own, strict=True) if logp + p > math.log(3e-3)]
    return found


async def test_drafted_draws_follow_the_exact_masked_distribution() -> None:
    """χ² of 800 draws against the probabilities of all responses, rare ones pooled."""
    model = qwen3()
    with torch.no_grad():
        model.model.norm.weight.mul_(0.4)  # a flatter distribution: more than a few responses are common
    policy = DraftingGrammarPolicy(model, compact())
    context = policy.context(TASK, TOOLS[1:], Observation("start"), (), ())
    exact = every_draw(policy, context.ids)
    done = await policy.draw(context, range(800), 64)
    await policy.close()
    seen = Counter(c.token_ids for c in done)
    common = [ids for ids, p in exact.items() if p * len(done) >= 5]
    assert len(common) >= 2 and 0.3 < sum(exact[ids] for ids in common) <= 1 + 1e-6
    cells = [(seen[ids], exact[ids] * len(done)) for ids in common]
    rest = len(done) - sum(n for n, _ in cells)
    cells.append((rest, len(done) - sum(e for _, e in cells)))
    square, free = sum((n - e) ** 2 / e for n, e in cells), len(cells) - 1
    assert square < free + 4 * math.sqrt(2 * free) + 4


async def test_a_cut_draw_is_counted_and_other_temperatures_are_not_trained_on(policy: GrammarPolicy) -> None:
    _, (cut,) = await drawn(policy, 1, max_tokens=2)
    assert cut.finish_reason == "length" and len(cut.token_ids) == 2
    policy.temperature = 0.0
    _, (greedy,) = await drawn(policy, 1)
    policy.temperature = 1.0
    assert greedy.text in WAYS and not greedy.trainable
    with pytest.raises(TreewrightError, match="no tool"):
        await policy.draw(policy.context(TASK, (), Observation("start"), (), ()), [1], 4)


async def test_the_seedling_makes_no_invalid_call_and_the_tree_says_how_it_was_drawn() -> None:
    policy: Any = open_policy("hf:" + str(SEEDLING), grammar=True)
    async with open_worlds(["kg"]) as worlds:
        trees = await collect(
            tasks_for(worlds, "train", 0, 4), worlds, policy, rule=best_first(), budget=Budget(expansions=3),
            settings=Settings(close=True, max_tokens=256),
        )  # fmt: skip
    await policy.close()
    drafts = [(t, i) for t in trees for i in range(1, len(t))]
    assert len(drafts) > 12 and all(t.action[i] is not None for t, i in drafts if t.finish[i] == "stop")
    assert all(t.header.settings["sampling"] == policy.sampling for t in trees)


def test_grammar_and_schema_name_every_tool() -> None:
    grammar, schema = action_grammar(TOOLS), action_schema(TOOLS)
    assert grammar.startswith("start: call_0 | call_1\n") and '"pick " %json' in grammar
    assert [kind["properties"]["name"]["const"] for kind in schema["anyOf"]] == ["pick", "go"]
    for make in (action_grammar, action_schema):
        with pytest.raises(TreewrightError, match="no tool"):
            make(())


@pytest.mark.parametrize(
    "text",
    [
        'pick {"n": 2}',
        'I will pick {"n": 2} now, I think.',
        'Sure!\n```json\n{"name": "pick", "arguments": {"n": 2}}\n```',
        "pick {'n': 2}",
        'pick({"n": 2})',
        'pick: {"n": 2,}',
        'pick {"n": 2',
        '{"name": "pick", "arguments": {"n": 2',
        "{'name': 'pick', 'arguments': {'n': 2}}",
    ],
)
def test_text_that_reads_as_an_action_is_repaired(text: str) -> None:
    action = parse_action(repair_action(text, TOOLS), TOOLS)
    validate_action(action, TOOLS)
    assert [(c.name, dict(c.arguments)) for c in action.calls] == [("pick", {"n": 2})]


@pytest.mark.parametrize("text", ["", "hello", "pick", "pick {", "{" * 500, 'pick {"n": 7}', "pick {'n': f()}"])
def test_text_that_cannot_be_repaired_stays_as_it_was(text: str) -> None:
    assert repair_action(text, TOOLS) == text


@pytest.mark.parametrize(
    ("odd", "held"),
    [
        ({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 2}, True),
        ({"enum": ["a", "b"], "format": "phone"}, True),
        ({"enum": ["a", "b"], "not": {"const": "c"}}, True),
        ({"type": "string", "maxLength": 3, "pattern": "^(?!x)[a-z]+$"}, True),
        ({"oneOf": [{"const": 1}, {"const": 2}]}, True),
        ({"type": "integer", "minimum": 5, "maximum": 1}, False),
        ({"enum": []}, False),
    ],
)
async def test_a_tool_whose_schema_says_more_than_a_grammar_can_does_not_end_the_search(
    policy: GrammarPolicy, odd: dict[str, Any], held: bool
) -> None:
    tools = (ToolSpec("odd", "", {"type": "object", "properties": {"q": odd}, "required": ["q"]}), *TOOLS)
    context = policy.context(TASK, tools, Observation("start"), (), ())
    done = await policy.draw(context, range(60), 64)
    said = [c.text for c in done if c.finish_reason == "stop"]
    others = [text for text in said if not text.startswith("odd ")]
    assert set(others) <= set(WAYS) and len(set(others)) > 1 and len(others) < len(done)
    if held:
        for text in set(said) - set(others):
            assert set(parse_action(text, tools).arguments) == {"q"}


def test_schemas_beside_each_other_keep_their_references() -> None:
    from jsonschema import Draft202012Validator

    kids = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/T"}}}}
    own = {"x": {"$ref": "#/$defs/T"}, "y": {"$ref": "#/properties/z"}, "z": {"type": "integer"}}
    tree = ToolSpec("grow", "", {"type": "object", "properties": own, "$defs": {"T": kids | {"required": ["kids"]}}})
    check = Draft202012Validator(action_schema((PICK, tree)))
    for arguments, right in [
        ({"x": {"kids": [{"kids": []}]}}, True), ({"x": {"kids": [3]}}, False), ({"y": 2}, True), ({"y": "a"}, False),
    ]:  # fmt: skip
        assert check.is_valid({"name": "grow", "arguments": arguments}) is right


WORDS = {
    "type": "object",
    "properties": {"to": {"type": "string"}, "text": {"type": "string"}},
    "required": ["to", "text"],
}
SAY = ToolSpec("say", "", WORDS)


async def said_freely(policy: Any, count: int, max_tokens: int) -> Any:
    context = policy.context(TASK, (SAY,), Observation("start"), (), ())
    return await policy.draw(context, range(count), max_tokens)


@pytest.mark.parametrize("limit", [24, 40, 64])
async def test_a_draw_that_rambles_ends_as_an_action_within_its_limit(policy: GrammarPolicy, limit: int) -> None:
    done = await said_freely(policy, 40, limit)
    lengths = [len(one.token_ids) for one in done]
    assert all(one.finish_reason == "stop" for one in done)
    for one in done:
        validate_action(parse_action(one.text, (SAY,)), (SAY,))
    assert max(lengths) <= limit and sum(length > limit - 8 for length in lengths) > 20  # random weights end no string


async def test_the_end_is_no_choice_and_what_was_drawn_before_is_what_a_longer_limit_gives(
    policy: GrammarPolicy,
) -> None:
    short, long = await said_freely(policy, 12, 32), await said_freely(policy, 12, 64)
    for a, b in zip(short, long, strict=True):
        same = next((i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y), 32)
        assert same >= 32 - 20
        assert_near(a.logprobs[:same], b.logprobs[:same])
        assert all(logprob == 0 for logprob in a.logprobs[same + 1 :])


async def test_drafts_change_no_draw_that_has_to_end(policy: GrammarPolicy) -> None:
    fast = DraftingGrammarPolicy(qwen3(), compact())
    want, got = await said_freely(policy, 20, 32), await said_freely(fast, 20, 32)
    await fast.close()
    for a, b in zip(got, want, strict=True):
        assert a.token_ids == b.token_ids
        assert_near(a.logprobs, b.logprobs)


async def test_a_limit_that_no_action_fits_cuts_the_draw(policy: GrammarPolicy) -> None:
    (cut,) = await said_freely(policy, 1, 6)
    assert cut.finish_reason == "length" and len(cut.token_ids) == 6
