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

    By KIND: "tensor", at `value`, a pointer and its stride; "number", itself, and "image", of which
    it is the number; or by name, over `ranks`: "samples", "positives" or "sum".
    """
    if KIND == "samples":
        z = tl.where(counts > 0, counts, 1.0) / ranks
    elif KIND == "positives":
        z = tl.maximum(positives, 1.0) / ranks
    elif KIND == "sum":
        z = tl.full([], 1.0, tl.float64) / ranks
    elif KIND == "number" or KIND == "image":
        z = tl.full([], number, tl.float64)
    else:
        z = tl.load(value[0] + group * value[1]).to(tl.float64)
    return z


@triton.jit
def store_results(
    local, total, group, results, z_cls, z_loc, z_cls_number, z_loc_number, ranks,
    Z_CLS: tl.constexpr, Z_LOC: tl.constexpr, JOINT: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Form a group's results from its sums, `total` over all ranks; returns its scalars."""
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
    made = (w_neg, one_sum(total, 4) / some, 1.0 / over_cls, 1.0 / over_loc, poison)
    for i in tl.static_range(5):
        tl.store(scalars + i, made[i])
    return made


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


@triton.jit
def of_image(sums, Z_CLS: tl.constexpr, Z_LOC: tl.constexpr):
    """An image's sums, those that its positives divide divided by them."""
    over = 1.0 / tl.maximum(one_sum(sums, 0), 1.0)
    kind = tl.arange(0, sums.shape[0])
    factor = tl.full(kind.shape, 1.0, tl.float64)
    if Z_CLS == "image":
        factor = tl.where((kind == 3) | (kind == 4), over, factor)
    if Z_LOC == "image":
        factor = tl.where((kind == 5) | (kind == 8), over, factor)
    return sums * factor


@triton.jit
def store_of_images(
    scalars, made, image_sums, images, Z_CLS: tl.constexpr, Z_LOC: tl.constexpr,
    KINDS: tl.constexpr,
):  # fmt: skip
    """The scalars [images, 5] of those of the batch."""
    for start in range(0, images, 32):
        image = start + tl.arange(0, 32)
        there = image < images
        positives = tl.load(image_sums + image * KINDS, mask=there, other=1.0, cache_modifier=".cg")
        positives = tl.maximum(positives, 1.0)
        out = scalars + 5 * image
        tl.store(out, made[0] + 0.0 * positives, mask=there)
        mean_neg, over_cls, over_loc = made[1], made[2], made[3]
        if Z_CLS == "image":
            mean_neg, over_cls = mean_neg * positives, over_cls / positives
        if Z_LOC == "image":
            over_loc = over_loc / positives
        tl.store(out + 1, mean_neg + 0.0 * positives, mask=there)
        tl.store(out + 2, over_cls + 0.0 * positives, mask=there)
        tl.store(out + 3, over_loc + 0.0 * positives, mask=there)
        tl.store(out + 4, made[4] + 0.0 * positives, mask=there)


@triton.jit
def finish_images_if_last(
    partial_sums, team_sums, image_sums, counters, images, results, z_cls, z_loc,
    z_cls_number, z_loc_number, ranks,
    Z_CLS: tl.constexpr, Z_LOC: tl.constexpr, JOINT: tl.constexpr, SUMS: tl.constexpr,
    KINDS: tl.constexpr,
):  # fmt: skip
    """As finish_if_last, where an image's positives divide its sums: a third round, by image.

    image_sums: float64 [images, KINDS]. The scalars are [images, 5].
    """
    programs = tl.num_programs(0) // images
    image, program = tl.program_id(0) // programs, tl.program_id(0) % programs
    team, teams = program // TEAM, tl.cdiv(programs, TEAM)
    begin = team * TEAM
    size = tl.minimum(programs - begin, TEAM)
    kind = tl.arange(0, KINDS)
    if arrive(counters + 1 + images + image * teams + team, size):
        sums = add_rows(partial_sums + (image * programs + begin) * KINDS, size, KINDS)
        tl.store(team_sums + (image * teams + team) * KINDS + kind, sums)
        tl.debug_barrier()  # between the stores of all threads and their loads
        last = teams == 1
        if not last:
            last = arrive(counters + 1 + image, teams)
        if last:
            sums = add_rows(team_sums + image * teams * KINDS, teams, KINDS)
            tl.store(image_sums + image * KINDS + kind, of_image(sums, Z_CLS, Z_LOC))
            tl.debug_barrier()
            last = images == 1
            if not last:
                last = arrive(counters, images)
            if last:
                sums = add_rows(image_sums, images, KINDS)
                made = store_results(
                    sums, sums, 0, results, (z_cls, 0), (z_loc, 0), z_cls_number, z_loc_number,
                    ranks, Z_CLS, Z_LOC, JOINT, SUMS,
                )  # fmt: skip
                tl.debug_barrier()  # over the batch's scalars, after them
                store_of_images(results[5], made, image_sums, images, Z_CLS, Z_LOC, KINDS)


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
