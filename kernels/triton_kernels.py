"""The Triton programs behind the `triton` and `triton_ptr` backends. Importing this needs Triton.

One source for both: `TMA` chooses whether tiles come through tensor descriptors (Hopper's copy engine) or pointers.
The algorithm is FlashAttention-2's (Dao 2023, arXiv:2307.08691) with the block lists of a `TreePlan` in place of the
causal triangle: full blocks run without a mask, partial ones compare positions with each key's `end`.

Shapes: q [Hq, Tq, D], o [Hq, Tq, DV]; k [Hkv, Tk, D], v [Hkv, Tk, DV]; lse, delta float32 [Hq, Tq]. `at` is a query's
key coordinate, `low` [Tq] the least depth of a key that a query sees. Scores are kept in base 2. `COMPUTE` is what
products take: the tensors' own type, or float32 in the interpreter, whose bfloat16 products are wrong. Token counts are
plain arguments, so that no pack compiles anything.
"""

# mypy: ignore-errors
# Triton compiles these functions; their annotations are its own.

import triton
import triton.language as tl

__all__ = ["columns_kernel", "delta_kernel", "forward_kernel", "queries_kernel"]

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
RUNTIME = ["n_q", "n_k", "q_offset"]


@triton.jit
def _tile(source, head, start, total, stride_h, stride_t, BLOCK: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr):
    """[BLOCK, D] of one head from token `start`; zeros behind `total`."""
    if TMA:
        tile = source.load([head, start, 0]).reshape(BLOCK, D)
    else:
        rows = start + tl.arange(0, BLOCK)
        at = source + head.to(tl.int64) * stride_h + rows[:, None].to(tl.int64) * stride_t + tl.arange(0, D)[None, :]
        tile = tl.load(at, mask=rows[:, None] < total, other=0.0)
    return tile


@triton.jit
def _sees(at, cols, ends, q_low, k_depth, WINDOW: tl.constexpr):
    """bool, True where the query at `at` sees the key `cols`; arguments broadcast against each other."""
    seen = (cols <= at) & (at < ends)
    if WINDOW:
        seen = seen & (k_depth >= q_low)
    return seen


@triton.jit
def _bent(scores, softcap, CAP: tl.constexpr):
    """Base-2 scores under a soft cap c (in base 2 too): c · tanh(s / c)."""
    if CAP:
        # tanh(x) = 1 - 2 / (1 + exp(2x)), which is right at both ends.
        scores = softcap * (1.0 - 2.0 / (1.0 + tl.exp2(scores * (2.0 * LOG2E / softcap))))
    return scores


@triton.jit
def _slope(d_scores, scores, softcap, CAP: tl.constexpr):
    """What a gradient by bent scores is by plain ones: d · (1 − (s / c)²)."""
    if CAP:
        part = scores / softcap
        d_scores = d_scores * (1.0 - part * part)
    return d_scores


@triton.jit
def _scores(q, k, at, q_low, block, n_k, end, depth, scale, softcap, MASKED: tl.constexpr, BLOCK_K: tl.constexpr,
            WINDOW: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Base-2 scores [BLOCK_Q, BLOCK_K], −inf where the query does not see the key; `softcap` is in base 2."""
    scores = _bent(tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E), softcap, CAP)
    if MASKED:
        cols = block * BLOCK_K + tl.arange(0, BLOCK_K)
        ends = tl.load(end + cols, mask=cols < n_k, other=0)
        k_depth = cols
        if WINDOW:
            k_depth = tl.load(depth + cols, mask=cols < n_k, other=0)
        seen = _sees(at[:, None], cols[None, :], ends[None, :], q_low[:, None], k_depth[None, :], WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
    return scores


@triton.jit
def _attend(acc, total, top, q, k, v, at, q_low, block, n_k, end, depth, scale, softcap, MASKED: tl.constexpr,
            BLOCK_K: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One key block of the running softmax: `top` is the row maximum so far, `total` the sum of exponentials."""
    scores = _scores(q, k, at, q_low, block, n_k, end, depth, scale, softcap, MASKED, BLOCK_K, WINDOW, CAP, PRECISION)
    raised = tl.maximum(top, tl.max(scores, 1))
    base = raised
    if MASKED:
        base = tl.where(raised == float("-inf"), 0.0, raised)  # a row that has seen nothing yet
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, total, raised


@triton.jit(do_not_specialize=RUNTIME)
def forward_kernel(q_in, k_in, v_in, out, lse, end, depth, low, partial_ptr, partial, full_ptr, full, n_q, n_k,
                   q_offset, scale, softcap, q_sh, q_st, k_sh, k_st, v_sh, v_st, GROUPS: tl.constexpr,
                   D: tl.constexpr, DV: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
                   COMPUTE: tl.constexpr, PRECISION: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
                   TMA: tl.constexpr):  # fmt: skip
    """out and lse of one block of queries and one head; out is contiguous [Hq, Tq, DV]."""
    # Late blocks tend to have the longest paths: they start first, so that processors end together.
    block, head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    kv_head, start = head // GROUPS, block * BLOCK_Q
    rows = start + tl.arange(0, BLOCK_Q)
    at = rows + q_offset
    q_low = at
    if WINDOW:
        q_low = tl.load(low + rows, mask=rows < n_q, other=0)
    q = _tile(q_in, head, start, n_q, q_sh, q_st, BLOCK_Q, D, TMA).to(COMPUTE)
    acc = tl.zeros([BLOCK_Q, DV], tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    for i in range(tl.load(full_ptr + block), tl.load(full_ptr + block + 1)):
        at_k = tl.load(full + i)
        k = _tile(k_in, kv_head, at_k * BLOCK_K, n_k, k_sh, k_st, BLOCK_K, D, TMA).to(COMPUTE)
        v = _tile(v_in, kv_head, at_k * BLOCK_K, n_k, v_sh, v_st, BLOCK_K, DV, TMA).to(COMPUTE)
        acc, total, top = _attend(acc, total, top, q, k, v, at, q_low, at_k, n_k, end, depth, scale, softcap, False,
                                  BLOCK_K, WINDOW, CAP, PRECISION)  # fmt: skip
    for i in range(tl.load(partial_ptr + block), tl.load(partial_ptr + block + 1)):
        at_k = tl.load(partial + i)
        k = _tile(k_in, kv_head, at_k * BLOCK_K, n_k, k_sh, k_st, BLOCK_K, D, TMA).to(COMPUTE)
        v = _tile(v_in, kv_head, at_k * BLOCK_K, n_k, v_sh, v_st, BLOCK_K, DV, TMA).to(COMPUTE)
        acc, total, top = _attend(acc, total, top, q, k, v, at, q_low, at_k, n_k, end, depth, scale, softcap, True,
                                  BLOCK_K, WINDOW, CAP, PRECISION)  # fmt: skip
    total = tl.where(total == 0.0, 1.0, total)  # only rows behind the last query see nothing
    acc = acc / total[:, None]
    inside = rows < n_q
    place = rows[:, None] * DV + tl.arange(0, DV)[None, :]
    tl.store(out + head.to(tl.int64) * n_q * DV + place, acc.to(out.dtype.element_ty), mask=inside[:, None])
    tl.store(lse + head.to(tl.int64) * n_q + rows, (top + tl.log2(total)) * LN2, mask=inside)


@triton.jit(do_not_specialize=["n_q"])
def delta_kernel(out, d_out, d_lse, delta, n_q, d_sh, d_st, D: tl.constexpr, BLOCK: tl.constexpr, LSE: tl.constexpr):
    """delta = rowsum(dO · O) − dlse; out is contiguous, d_out strided."""
    start, head = tl.program_id(0) * BLOCK, tl.program_id(1).to(tl.int64)
    rows, dims = start + tl.arange(0, BLOCK), tl.arange(0, D)
    inside = rows < n_q
    o = tl.load(out + (head * n_q + rows)[:, None] * D + dims[None, :], mask=inside[:, None], other=0.0)
    g_at = d_out + head * d_sh + rows[:, None].to(tl.int64) * d_st + dims[None, :]
    g = tl.load(g_at, mask=inside[:, None], other=0.0)
    value = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    if LSE:
        value -= tl.load(d_lse + head * n_q + rows, mask=inside, other=0.0)
    tl.store(delta + head * n_q + rows, value, mask=inside)


@triton.jit
def _query_step(d_q, q, g, k, v, lse2, deltas, at, q_low, block, n_k, end, depth, scale, softcap,
                MASKED: tl.constexpr, BLOCK_K: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
                PRECISION: tl.constexpr):  # fmt: skip
    scores = _scores(q, k, at, q_low, block, n_k, end, depth, scale, softcap, MASKED, BLOCK_K, WINDOW, CAP, PRECISION)
    weights = tl.exp2(scores - lse2[:, None])
    d_weights = tl.dot(g, tl.trans(v), input_precision=PRECISION)
    d_scores = weights * (d_weights - deltas[:, None])
    if CAP:
        d_scores = _slope(d_scores, tl.where(scores == float("-inf"), 0.0, scores), softcap, CAP)
    return tl.dot(d_scores.to(k.dtype), k, d_q, input_precision=PRECISION)


@triton.jit(do_not_specialize=RUNTIME)
def queries_kernel(q_in, k_in, v_in, g_in, lse, delta, d_q_out, end, depth, low, partial_ptr, partial, full_ptr, full,
                   n_q, n_k, q_offset, scale, softcap, q_sh, q_st, k_sh, k_st, v_sh, v_st, g_sh, g_st,
                   GROUPS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_Q: tl.constexpr,
                   BLOCK_K: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, WINDOW: tl.constexpr,
                   CAP: tl.constexpr, TMA: tl.constexpr):  # fmt: skip
    """dQ of one block of queries and one head, contiguous [Hq, Tq, D]."""
    # Late blocks tend to have the longest paths: they start first, so that processors end together.
    block, head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    kv_head, start = head // GROUPS, block * BLOCK_Q
    rows = start + tl.arange(0, BLOCK_Q)
    inside = rows < n_q
    at = rows + q_offset
    q_low = at
    if WINDOW:
        q_low = tl.load(low + rows, mask=inside, other=0)
    q = _tile(q_in, head, start, n_q, q_sh, q_st, BLOCK_Q, D, TMA).to(COMPUTE)
    g = _tile(g_in, head, start, n_q, g_sh, g_st, BLOCK_Q, DV, TMA).to(COMPUTE)
    lse2 = tl.load(lse + head.to(tl.int64) * n_q + rows, mask=inside, other=float("inf")) * LOG2E
    deltas = tl.load(delta + head.to(tl.int64) * n_q + rows, mask=inside, other=0.0)
    d_q = tl.zeros([BLOCK_Q, D], tl.float32)
    for i in range(tl.load(full_ptr + block), tl.load(full_ptr + block + 1)):
        at_k = tl.load(full + i)
        k = _tile(k_in, kv_head, at_k * BLOCK_K, n_k, k_sh, k_st, BLOCK_K, D, TMA).to(COMPUTE)
        v = _tile(v_in, kv_head, at_k * BLOCK_K, n_k, v_sh, v_st, BLOCK_K, DV, TMA).to(COMPUTE)
        d_q = _query_step(d_q, q, g, k, v, lse2, deltas, at, q_low, at_k, n_k, end, depth, scale, softcap, False,
                          BLOCK_K, WINDOW, CAP, PRECISION)  # fmt: skip
    for i in range(tl.load(partial_ptr + block), tl.load(partial_ptr + block + 1)):
        at_k = tl.load(partial + i)
        k = _tile(k_in, kv_head, at_k * BLOCK_K, n_k, k_sh, k_st, BLOCK_K, D, TMA).to(COMPUTE)
        v = _tile(v_in, kv_head, at_k * BLOCK_K, n_k, v_sh, v_st, BLOCK_K, DV, TMA).to(COMPUTE)
        d_q = _query_step(d_q, q, g, k, v, lse2, deltas, at, q_low, at_k, n_k, end, depth, scale, softcap, True,
                          BLOCK_K, WINDOW, CAP, PRECISION)  # fmt: skip
    place = rows[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(
        d_q_out + head.to(tl.int64) * n_q * D + place, (d_q * scale).to(d_q_out.dtype.element_ty), mask=inside[:, None]
    )


@triton.jit
def _column_step(d_k, d_v, d_q_out, k, v, q, g, lse, delta, head, block, start, end, depth, low, n_q, n_k, q_offset,
                 scale, softcap, MASKED: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
                 WINDOW: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr, FUSED: tl.constexpr):  # fmt: skip
    """One block of queries for one block of keys, transposed: scores are [BLOCK_K, BLOCK_Q]."""
    rows = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside = rows < n_q
    lse2 = tl.load(lse + head.to(tl.int64) * n_q + rows, mask=inside, other=float("inf")) * LOG2E
    deltas = tl.load(delta + head.to(tl.int64) * n_q + rows, mask=inside, other=0.0)
    scores = _bent(tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * LOG2E), softcap, CAP)
    weights = tl.exp2(scores - lse2[None, :])
    if MASKED:
        cols = start + tl.arange(0, BLOCK_K)
        ends = tl.load(end + cols, mask=cols < n_k, other=0)
        at = rows + q_offset
        q_low, k_depth = at, cols
        if WINDOW:
            q_low = tl.load(low + rows, mask=inside, other=0)
            k_depth = tl.load(depth + cols, mask=cols < n_k, other=0)
        seen = _sees(at[None, :], cols[:, None], ends[:, None], q_low[None, :], k_depth[:, None], WINDOW)
        weights = tl.where(seen, weights, 0.0)
    d_v = tl.dot(weights.to(g.dtype), g, d_v, input_precision=PRECISION)
    d_weights = tl.dot(v, tl.trans(g), input_precision=PRECISION)
    d_scores = _slope(weights * (d_weights - deltas[None, :]), scores, softcap, CAP)
    d_k = tl.dot(d_scores.to(q.dtype), q, d_k, input_precision=PRECISION)
    if FUSED:
        d_q = tl.dot(tl.trans(d_scores.to(k.dtype)), k, input_precision=PRECISION)
        place = rows[:, None] * D + tl.arange(0, D)[None, :]
        tl.atomic_add(d_q_out + head.to(tl.int64) * n_q * D + place, d_q * scale, mask=inside[:, None], sem="relaxed")
    return d_k, d_v


@triton.jit(do_not_specialize=RUNTIME)
def columns_kernel(q_in, k_in, v_in, g_in, lse, delta, d_k_out, d_v_out, d_q_out, end, depth, low, item_key,
                   item_first, item_stop, item_full_first, item_full_stop, n_q, n_k, q_offset, scale, softcap, q_sh,
                   q_st, k_sh, k_st, v_sh, v_st, g_sh, g_st, GROUPS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
                   BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
                   WINDOW: tl.constexpr, CAP: tl.constexpr, TMA: tl.constexpr, ADD: tl.constexpr,
                   FUSED: tl.constexpr):  # fmt: skip
    """dK [Hkv, Tk, D] and dV [Hkv, Tk, DV] of one work item and one key head, contiguous; one loop over (query head,
    query block).

    `ADD`: several items share a key block, so they add to zeroed float32 buffers. `FUSED`: dQ [Hq, Tq, D] is added to
    such a buffer too, which saves the two products that `queries_kernel` computes again.
    """
    item, kv_head = tl.program_id(0), tl.program_id(1)
    start = tl.load(item_key + item) * BLOCK_K
    first, stop = tl.load(item_first + item), tl.load(item_stop + item)
    full_first, full_stop = tl.load(item_full_first + item), tl.load(item_full_stop + item)
    k = _tile(k_in, kv_head, start, n_k, k_sh, k_st, BLOCK_K, D, TMA).to(COMPUTE)
    v = _tile(v_in, kv_head, start, n_k, v_sh, v_st, BLOCK_K, DV, TMA).to(COMPUTE)
    d_k = tl.zeros([BLOCK_K, D], tl.float32)
    d_v = tl.zeros([BLOCK_K, DV], tl.float32)
    n_full = full_stop - full_first
    for i in range(0, GROUPS * n_full):
        head, block = kv_head * GROUPS + i // n_full, full_first + i % n_full
        q = _tile(q_in, head, block * BLOCK_Q, n_q, q_sh, q_st, BLOCK_Q, D, TMA).to(COMPUTE)
        g = _tile(g_in, head, block * BLOCK_Q, n_q, g_sh, g_st, BLOCK_Q, DV, TMA).to(COMPUTE)
        d_k, d_v = _column_step(d_k, d_v, d_q_out, k, v, q, g, lse, delta, head, block, start, end, depth, low, n_q,
                                n_k, q_offset, scale, softcap, False, D, BLOCK_Q, BLOCK_K, WINDOW, CAP, PRECISION,
                                FUSED)  # fmt: skip
    before = full_first - first
    n_partial = before + stop - full_stop
    for i in range(0, GROUPS * n_partial):
        head, place = kv_head * GROUPS + i // n_partial, i % n_partial
        block = tl.where(place < before, first + place, full_stop + place - before)
        q = _tile(q_in, head, block * BLOCK_Q, n_q, q_sh, q_st, BLOCK_Q, D, TMA).to(COMPUTE)
        g = _tile(g_in, head, block * BLOCK_Q, n_q, g_sh, g_st, BLOCK_Q, DV, TMA).to(COMPUTE)
        d_k, d_v = _column_step(d_k, d_v, d_q_out, k, v, q, g, lse, delta, head, block, start, end, depth, low, n_q,
                                n_k, q_offset, scale, softcap, True, D, BLOCK_Q, BLOCK_K, WINDOW, CAP, PRECISION,
                                FUSED)  # fmt: skip
    cols = start + tl.arange(0, BLOCK_K)
    inside = cols < n_k
    before_head = kv_head.to(tl.int64) * n_k
    k_place = before_head * D + cols[:, None] * D + tl.arange(0, D)[None, :]
    v_place = before_head * DV + cols[:, None] * DV + tl.arange(0, DV)[None, :]
    if ADD:
        tl.atomic_add(d_v_out + v_place, d_v, mask=inside[:, None], sem="relaxed")
        tl.atomic_add(d_k_out + k_place, d_k * scale, mask=inside[:, None], sem="relaxed")
    else:
        tl.store(d_v_out + v_place, d_v.to(d_v_out.dtype.element_ty), mask=inside[:, None])
        tl.store(d_k_out + k_place, (d_k * scale).to(d_k_out.dtype.element_ty), mask=inside[:, None])
