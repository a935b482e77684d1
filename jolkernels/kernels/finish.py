"""From the programs' sums to the loss.

Each program leaves its sums, [KINDS] numbers in the order of jolkernels.cpu.sums. The last of TEAM
programs to arrive adds the team's, and the last of these adds those of all teams, always in the
same order and in float64: the same input gives the same bits, whoever comes last. Counters say who
does; they are 0 before a launch and after it, and nobody waits for another.

    w_neg = W / P    L_cls = (A_pos + w_neg A_neg) / Z_cls    L_loc = R / Z_loc
"""

import triton
import triton.language as tl

TEAM = tl.constexpr(64)
"""Programs whose sums are added at a time."""
BAD = tl.constexpr(6)
"""Where the sums have the rows that are bad."""
MOST_KINDS = 16
"""Sums of a program at most, rounded up to a power of two."""


@triton.jit
def in_order(values, KINDS: tl.constexpr):
    """Scalars as a tensor [KINDS], 0 beyond them."""
    kind = tl.arange(0, KINDS)
    numbers = tl.zeros([KINDS], values[0].dtype)
    for i in tl.static_range(len(values)):
        numbers = tl.where(kind == i, values[i], numbers)
    return numbers


@triton.jit
def one_sum(sums, INDEX: tl.constexpr):
    """One of the sums [KINDS]."""
    kind = tl.arange(0, sums.shape[0])
    return tl.sum(tl.where(kind == INDEX, sums, 0.0), 0)


@triton.jit
def add_rows(table, rows, KINDS: tl.constexpr):
    """The sum over the rows of a table [rows, KINDS] in float64, TEAM at a time."""
    total = tl.zeros([KINDS], tl.float64)
    for start in range(0, rows, TEAM):
        i = start + tl.arange(0, TEAM)[:, None]
        numbers = tl.load(
            table + i * KINDS + tl.arange(0, KINDS)[None, :],
            mask=i < rows, other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        total += tl.sum(numbers.to(tl.float64), 0)
    return total


@triton.jit
def arrive(counter, expected):
    """Whether this program is the last of those expected; then the counter is 0 again."""
    tl.debug_barrier()  # what all threads stored comes before
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == expected - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def normalizer(value, number, group, counts, positives, ranks, KIND: tl.constexpr):
    """A normaliser of a group in float64.

    By KIND: "tensor", at `value`, a pointer and its stride; "number", itself; or by name, over
    `ranks`: "samples", "positives" or "sum".
    """
    if KIND == "samples":
        z = tl.where(counts > 0, counts, 1.0) / ranks
    elif KIND == "positives":
        z = tl.maximum(positives, 1.0) / ranks
    elif KIND == "sum":
        z = tl.full([], 1.0, tl.float64) / ranks
    elif KIND == "number":
        z = tl.full([], number, tl.float64)
    else:
        z = tl.load(value[0] + group * value[1]).to(tl.float64)
    return z


@triton.jit
def store_results(
    local, total, group, results, z_cls, z_loc, z_cls_number, z_loc_number, ranks,
    Z_CLS: tl.constexpr, Z_LOC: tl.constexpr, JOINT: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Form a group's results from its sums, `total` over all ranks."""
    classification, regression, negative_weight, num_positives, extra_regression, scalars = results
    positives, samples = one_sum(total, 0), one_sum(total, 1)
    weights, bad = one_sum(total, 2), one_sum(total, BAD)
    a_pos, a_neg, r = one_sum(local, 3), one_sum(local, 4), one_sum(local, 5)
    counts, extra = samples, tl.zeros_like(r)
    if SUMS > 7:
        counts, extra = one_sum(total, 7), one_sum(local, 8)
    poison = tl.where(bad > 0, bad * float("nan"), bad * 0.0)
    some = tl.maximum(positives, 1.0)
    w_neg = tl.where((positives > 0) & JOINT, weights / some, 1.0)
    over_cls = normalizer(z_cls, z_cls_number, group, counts, positives, ranks, Z_CLS)
    over_loc = normalizer(z_loc, z_loc_number, group, samples, positives, ranks, Z_LOC)
    tl.store(classification + group, (a_pos + w_neg * a_neg) / over_cls + poison)
    tl.store(regression + group, r / over_loc + poison)
    tl.store(negative_weight + group, w_neg)
    tl.store(num_positives + group, positives.to(tl.int64))
    tl.store(extra_regression + group, extra / over_loc + poison)
    scalars += 5 * group
    tl.store(scalars, w_neg)
    tl.store(scalars + 1, one_sum(total, 4) / some)
    tl.store(scalars + 2, 1.0 / over_cls)
    tl.store(scalars + 3, 1.0 / over_loc)
    tl.store(scalars + 4, poison)


@triton.jit
def finish_if_last(
    partial_sums, team_sums, counters, groups, results,
    z_cls, z_loc, z_cls_number, z_loc_number, ranks,
    Z_CLS: tl.constexpr, Z_LOC: tl.constexpr, JOINT: tl.constexpr, SUMS: tl.constexpr,
    KINDS: tl.constexpr,
):  # fmt: skip
    """Add up and form the results of all groups, in the program that comes last.

    partial_sums: [groups, programs, KINDS]; team_sums: float64 [groups, teams, KINDS].
    """
    programs = tl.num_programs(0)
    team, teams = tl.program_id(0) // TEAM, tl.cdiv(programs, TEAM)
    begin = team * TEAM
    size = tl.minimum(programs - begin, TEAM)
    kind = tl.arange(0, KINDS)
    if arrive(counters + 1 + team, size):
        for group in range(groups):
            sums = add_rows(partial_sums + (group * programs + begin) * KINDS, size, KINDS)
            tl.store(team_sums + (group * teams + team) * KINDS + kind, sums)
        tl.debug_barrier()  # between the stores of all threads and their loads
        last = teams == 1
        if not last:
            last = arrive(counters, teams)
        if last:
            for group in range(groups):
                sums = add_rows(team_sums + group * teams * KINDS, teams, KINDS)
                store_results(
                    sums, sums, group, results, z_cls, z_loc, z_cls_number, z_loc_number, ranks,
                    Z_CLS, Z_LOC, JOINT, SUMS,
                )  # fmt: skip


@triton.jit(
    do_not_specialize=["programs", "ranks", "stride_z_cls", "stride_z_loc"],
    do_not_specialize_on_alignment=["z_cls", "z_loc"],
)
def finish_kernel(
    partial_sums, programs, totals,
    classification, regression, negative_weight, num_positives, extra_regression, scalars,
    z_cls, stride_z_cls, z_loc, stride_z_loc,
    z_cls_number: tl.float64, z_loc_number: tl.float64, ranks,
    Z_CLS: tl.constexpr, Z_LOC: tl.constexpr, JOINT: tl.constexpr, SUMS: tl.constexpr,
    KINDS: tl.constexpr,
):  # fmt: skip
    """Add up and form the results of a group, a program each: of many groups, or of many ranks.

    totals: float64 [groups, KINDS], the sums over the `ranks` ranks of a process group, or None
    without one.
    """
    group = tl.program_id(0).to(tl.int64)
    local = add_rows(partial_sums + group * programs * KINDS, programs, KINDS)
    total = local
    if totals is not None:
        total = tl.load(totals + group * KINDS + tl.arange(0, KINDS))
    results = (
        classification, regression, negative_weight, num_positives, extra_regression, scalars
    )  # fmt: skip
    store_results(
        local, total, group, results, (z_cls, stride_z_cls), (z_loc, stride_z_loc),
        z_cls_number, z_loc_number, ranks, Z_CLS, Z_LOC, JOINT, SUMS,
    )  # fmt: skip
