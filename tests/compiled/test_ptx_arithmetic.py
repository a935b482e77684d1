"""What opcodes compute, against the ISA's words, numpy, torch and exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from cases import INTERPRETED

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from bench.ptx import PtxError, floats
from bench.ptx.arithmetic import operation
from bench.ptx.types import TYPES
from bench.ptx.warps import source_lanes

pytestmark = pytest.mark.compiled
INF, NAN = float("inf"), float("nan")
TINY = 2.0**-149  # the smallest float32


def apply(opcode, *values):
    """An opcode on numbers, each an array of its operand's type."""
    made = operation(opcode, len(values))
    arrays = [
        np.atleast_2d(v if isinstance(v, np.ndarray) else number(v, t))
        for v, t in zip(values, made.operands, strict=True)
    ]
    with np.errstate(all="ignore"):
        return made.function(*arrays)


def number(value, type_name):
    """A number, or for a bfloat16 the bits that torch gives it."""
    if type_name == "bf16":
        return torch.tensor(value, dtype=torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    dtype = TYPES[type_name]
    if dtype.kind in "iu":
        bits = int(value) % (1 << 8 * dtype.itemsize)
        return np.array(bits, f"u{dtype.itemsize}").view(dtype)
    return np.array(value, dtype)


def plain(result, opcode, count):
    """One number out of a result."""
    name = operation(opcode, count).result
    one = result.reshape(-1)
    if name == "bf16":
        return torch.from_numpy(one.view(np.int16)).view(torch.bfloat16).item()
    return one[0].item()


def same(a, b):
    """Equal, NaN and signed zeros too."""
    if isinstance(a, float) and isinstance(b, float):
        return (a != a and b != b) or (a == b and np.signbit(a) == np.signbit(b))
    return a == b


TABLE = [
    # min and max: NaN loses, or with .NaN wins; -0 is below +0
    ("max.f32", (NAN, 1.0), 1.0),
    ("max.f32", (1.0, NAN), 1.0),
    ("max.f32", (NAN, NAN), NAN),
    ("max.NaN.f32", (NAN, 1.0), NAN),
    ("min.NaN.f64", (1.0, NAN), NAN),
    ("max.f32", (-0.0, 0.0), 0.0),
    ("max.f32", (0.0, -0.0), 0.0),
    ("min.f32", (0.0, -0.0), -0.0),
    ("min.f64", (-0.0, 0.0), -0.0),
    ("min.bf16", (NAN, 2.0), 2.0),
    ("max.f32", (1.0, NAN, 3.0), 3.0),
    ("min.NaN.f32", (1.0, NAN, 3.0), NAN),
    # comparisons: ordered false for NaN, unordered true
    ("setp.ne.f32", (NAN, NAN), False),
    ("setp.neu.f32", (NAN, NAN), True),
    ("setp.eq.f32", (0.0, -0.0), True),
    ("setp.equ.f64", (1.0, NAN), True),
    ("setp.ltu.f32", (2.0, 1.0), False),
    ("setp.num.f32", (1.0, NAN), False),
    ("setp.nan.f64", (1.0, NAN), True),
    ("setp.ge.bf16", (NAN, NAN), False),
    ("setp.le.f16", (1.0, 1.0), True),
    ("setp.lt.s32", (-1, 0), True),
    ("setp.lt.u32", (-1, 0), False),
    ("setp.hi.u32", (-1, 0), True),
    ("setp.lt.ftz.f32", (0.0, TINY), False),
    ("setp.lt.f32", (0.0, TINY), True),
    ("setp.gt.and.s32", (2, 1, False), False),
    ("setp.gt.or.s32", (1, 2, True), True),
    # flushing
    ("add.ftz.f32", (TINY, TINY), 0.0),
    ("add.f32", (TINY, TINY), 2 * TINY),
    ("mul.ftz.f32", (-(2.0**-100), 2.0**-40), -0.0),
    ("abs.ftz.f32", (-TINY,), 0.0),
    ("rcp.approx.f32", (0.0,), INF),
    ("rcp.approx.f32", (-0.0,), -INF),
    ("div.full.f32", (0.0, 0.0), NAN),
    ("ex2.approx.f32", (-INF,), 0.0),
    ("ex2.approx.f32", (200.0,), INF),
    ("lg2.approx.f32", (0.0,), -INF),
    ("lg2.approx.f32", (-1.0,), NAN),
    ("sqrt.approx.ftz.f32", (-1.0,), NAN),
    ("rsqrt.approx.ftz.f32", (0.0,), INF),
    ("neg.f32", (0.0,), -0.0),
    ("copysign.f32", (-1.0, 3.0), -3.0),
    # conversions to integers: rounded as said, clamped, NaN 0 or the highest bit
    ("cvt.rni.s32.f32", (2.5,), 2),
    ("cvt.rni.s32.f32", (3.5,), 4),
    ("cvt.rzi.s32.f32", (-2.7,), -2),
    ("cvt.rmi.s32.f32", (-2.1,), -3),
    ("cvt.rpi.s32.f32", (2.1,), 3),
    ("cvt.rzi.s32.f32", (1e10,), 2**31 - 1),
    ("cvt.rzi.s32.f32", (-INF,), -(2**31)),
    ("cvt.rzi.u32.f32", (-1.0,), 0),
    ("cvt.rzi.u32.f32", (INF,), 2**32 - 1),
    ("cvt.rzi.s32.f32", (NAN,), 0),
    ("cvt.rzi.u32.f32", (NAN,), 0),
    ("cvt.rzi.s64.f32", (NAN,), -(2**63)),
    ("cvt.rzi.s64.f64", (NAN,), -(2**63)),
    ("cvt.rzi.s32.f64", (NAN,), -(2**31)),
    ("cvt.rzi.u64.f64", (NAN,), 2**63),
    ("cvt.rzi.s64.f64", (1e30,), 2**63 - 1),
    ("cvt.rzi.u64.f64", (2.0**64,), 2**64 - 1),
    ("cvt.rzi.s64.f64", (-(2.0**63),), -(2**63)),
    ("cvt.rzi.s16.f32", (1e6,), 2**15 - 1),
    ("cvt.rmi.f32.f32", (-0.5,), -1.0),
    ("cvt.rni.ftz.s32.f32", (0.5,), 0),
    # between floats
    ("cvt.rn.f16.f32", (65519.0,), 65504.0),
    ("cvt.rn.f16.f32", (65520.0,), INF),
    ("cvt.rn.f16.f32", (2.0**-25,), 0.0),
    ("cvt.rn.f16.f32", (1.5 * 2.0**-25,), 2.0**-24),
    ("cvt.rn.bf16.f32", (3.3895313892515355e38,), 3.3895313892515355e38),
    ("cvt.rn.bf16.f32", (3.4e38,), INF),
    ("cvt.rz.bf16.f32", (1.9999999,), 1.9921875),
    ("cvt.rn.bf16.f32", (1 + 2.0**-8,), 1.0),
    ("cvt.rn.bf16.f32", (1 + 3 * 2.0**-8,), 1 + 2.0**-6),
    ("cvt.f32.bf16", (-0.0,), -0.0),
    ("cvt.rn.f32.f64", (1 + 2.0**-24,), 1.0),
    ("cvt.rn.sat.f32.f64", (1.5,), 1.0),
    ("cvt.rn.sat.f32.f64", (NAN,), 0.0),
    ("cvt.rn.f32.s64", (2**53 + 1,), float(2**53)),
    ("cvt.rn.f32.u64", (2**64 - 1,), float(2**64)),
    # between integers
    ("cvt.s64.s32", (-5,), -5),
    ("cvt.u64.u32", (-5,), 2**32 - 5),
    ("cvt.u16.u64", (0x12345,), 0x2345),
    ("cvt.s16.s32", (0x18000,), -(2**15)),
    ("cvt.sat.s16.s32", (100_000,), 2**15 - 1),
    ("cvt.sat.u16.s32", (-3,), 0),
    # integers wrap
    ("add.s32", (2**31 - 1, 1), -(2**31)),
    ("sub.s64", (-(2**63), 1), 2**63 - 1),
    ("mul.lo.s32", (2**30, 4), 0),
    ("mul.hi.s32", (-1, 1), -1),
    ("mul.hi.u32", (-1, -1), 2**32 - 2),
    ("mul.hi.u64", (-1, -1), 2**64 - 2),
    ("mul.hi.s64", (-(2**63), 3), -2),
    ("mul.hi.s64", (-7, 5), -1),
    ("mul.wide.s32", (-(2**31), 2), -(2**32)),
    ("mul.wide.u32", (-1, -1), (2**32 - 1) ** 2),
    ("mad.wide.s32", (-2, 3, 10), 4),
    ("mad.lo.s64", (3, 4, 5), 17),
    ("mad.hi.u32", (2**31, 4, 7), 9),
    ("div.s32", (-7, 2), -3),
    ("rem.s32", (-7, 2), -1),
    ("div.u32", (-7, 2), (2**32 - 7) // 2),
    ("abs.s32", (-(2**31),), -(2**31)),
    ("neg.s32", (5,), -5),
    ("not.b32", (0,), 2**32 - 1),
    ("not.pred", (True,), False),
    ("xor.pred", (True, True), False),
    # shifts clamp their count
    ("shl.b32", (1, 31), 2**31),
    ("shl.b32", (1, 32), 0),
    ("shl.b64", (1, -1), 0),
    ("shr.u32", (2**31, 40), 0),
    ("shr.s32", (-8, 1), -4),
    ("shr.s32", (-8, 99), -1),
    ("shr.s64", (2**62, 64), 0),
    ("shf.l.wrap.b32", (0x80000000, 1, 1), 3),
    ("shf.r.wrap.b32", (0x80000000, 1, 33), 0xC0000000),
    ("shf.r.clamp.b32", (5, 6, 40), 6),
    ("shf.l.clamp.b32", (5, 6, 40), 5),
    # fields
    ("bfe.u32", (0xABCD, 4, 8), 0xBC),
    ("bfe.s32", (0x80, 4, 4), -8),
    ("bfe.u32", (0xFFFFFFFF, 28, 8), 0xF),
    ("bfe.s32", (-(2**31), 28, 8), -8),
    ("bfe.u32", (0xFFFFFFFF, 4, 0), 0),
    ("bfe.u32", (0xFFFFFFFF, 40, 8), 0),
    ("bfi.b32", (0xF, 0, 4, 4), 0xF0),
    ("bfi.b32", (0, 0xFFFF, 8, 4), 0xF0FF),
    ("prmt.b32", (0x33221100, 0x77665544, 0x7610), 0x77661100),
    ("prmt.b32", (0x000000FF, 0, 0x8888), 0xFFFFFFFF),
    ("popc.b32", (0xF0F0,), 8),
    ("clz.b32", (1,), 31),
    ("clz.b32", (0,), 32),
    ("clz.b64", (2**40,), 23),
    ("selp.b64", (1, 2, False), 2),
    # halves
    ("abs.bf16", (-2.5,), 2.5),
    ("neg.bf16", (2.5,), -2.5),
    ("fma.rn.bf16", (3.0, 3.0, -9.0), 0.0),
    ("add.f16", (2048.0, 1.0), 2048.0),
    ("add.bf16", (256.0, 1.0), 256.0),
    ("sub.rn.f32.bf16", (1.5, 2.0**-20), 1.5 - 2.0**-20),
    ("fma.rn.f32.f16", (1.5, 2.0, 2.0**-20), 3 + 2.0**-20),
]


@pytest.mark.parametrize(("opcode", "values", "wanted"), TABLE)
def test_edges(opcode, values, wanted):
    got = apply(opcode, *values)
    assert got.dtype == TYPES[operation(opcode, len(values)).result]
    assert same(plain(got, opcode, len(values)), wanted)


def test_halves_in_one_register():
    a = np.array([[1.5, -2.0]], np.float16).view(np.uint32)
    assert apply("abs.f16x2", a).view(np.float16).tolist() == [[1.5, 2.0]]
    pair = np.array([[1.5, -2.0]], np.float32).view(np.uint64)
    assert apply("fma.rn.f32x2", pair, pair, pair).view(np.float32).tolist() == [[3.75, 2.0]]
    packed = apply("cvt.rn.bf16x2.f32", 1.0, 2.0)  # the first above the second
    assert packed.tolist() == [[0x3F804000]]
    assert apply("cvt.rn.f16x2.f32", 1.0, 2.0).tolist() == [[0x3C004000]]
    assert apply("setp.le.f16x2", a, a * 0).tolist() == [[[False, True]]]


def random_numbers(dtype, count, seed):
    """Numbers of all exponents, with zeros, infinities, NaN and subnormals."""
    r = np.random.default_rng(seed)
    bits = r.integers(0, 2 ** (8 * np.dtype(dtype).itemsize), count, np.uint64)
    x = bits.astype(f"u{np.dtype(dtype).itemsize}").view(dtype)
    x[: count // 2] = r.normal(size=count // 2) * 2.0 ** r.integers(-12, 12, count // 2)
    return x


def exact_fma(x, y, z, dtype):
    """x y + z by exact fractions, rounded once."""
    info = np.finfo(dtype)
    total = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
    if total == 0:
        return float(x) * float(y) + float(z)
    exponent = max(total.numerator.bit_length() - total.denominator.bit_length() - 1, info.minexp)
    while abs(total) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    step = Fraction(2) ** (exponent - info.nmant)
    rounded = round(total / step) * step  # ties to even
    made = abs(float(rounded)) if abs(rounded) <= Fraction(float(info.max)) else INF
    return -made if total < 0 else made


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@np.errstate(all="ignore")
def test_fma_rounds_once(dtype):
    count = 3000
    x, y, z = (random_numbers(dtype, count, seed) for seed in (1, 2, 3))
    p = (x.astype(np.float64) * y).astype(dtype)
    z[::3] = -p[::3]  # cancels
    ulps = np.random.default_rng(4).integers(-2, 3, count)
    z[1::3] = (p * dtype(2.0 ** np.finfo(dtype).nmant))[1::3] * ulps[1::3].astype(dtype)
    if dtype == np.float64:  # fma64 states its range
        fine = (np.abs(x) < 2.0**900) & (np.abs(y) < 2.0**900) & (np.abs(p) > 2.0**-900)
        x, y, z = x[fine], y[fine], z[fine]
    got = floats.fma(x, y, z)
    finite = np.isfinite(x) & np.isfinite(y) & np.isfinite(z)
    naive = x.astype(np.float64) * y.astype(np.float64) + z.astype(np.float64)
    assert finite.sum() > 1000
    wanted = [exact_fma(*v, dtype) for v in zip(x[finite], y[finite], z[finite], strict=True)]
    assert all(map(same, got[finite].astype(float).tolist(), map(float, wanted)))
    assert (np.isnan(got) == np.isnan(naive))[~finite].all()


def test_fma_at_a_tie_that_float64_cannot_see():
    x, y, z = np.float32([1 + 2.0**-12]), np.float32([1 + 2.0**-12]), np.float32([2.0**-60])
    # x y = 1 + 2^-11 + 2^-24 lies between two float32; z decides, 36 bits below it
    assert floats.fma(x, y, z)[0] == np.float32(1 + 2.0**-11 + 2.0**-23)
    assert floats.fma(x, y, -z)[0] == np.float32(1 + 2.0**-11)


def test_bfloat16_rounds_as_torch():
    x = random_numbers(np.float32, 100_000, 5)
    u = np.arange(2**16, dtype=np.uint32) << 16
    ties = np.concatenate([u, u | 0x8000, u | 0x8001, u | 0x7FFF]).astype(np.uint32).view("f4")
    for values in (x, ties):
        wanted = torch.from_numpy(values).bfloat16().float().numpy()
        got = floats.from_bf16(floats.to_bf16(values))
        assert np.array_equal(got, wanted, equal_nan=True)
        assert (floats.to_bf16(values)[np.isnan(values)] == 0x7FFF).all()


@pytest.mark.parametrize(("name", "function"), [
    ("add", torch.add), ("sub", torch.sub), ("mul", torch.mul),
    ("fma.rn", lambda a, b, c: (a.double() * b.double() + c.double()).to(a.dtype)),
])  # fmt: skip
@pytest.mark.parametrize("type_name", ["f16", "bf16"])
def test_halves_as_torch(name, function, type_name):
    dtype = torch.bfloat16 if type_name == "bf16" else torch.float16
    g = torch.Generator().manual_seed(0)
    count = operation(f"{name}.{type_name}", 3 if name == "fma.rn" else 2).operands
    tensors = [torch.randn(10_000, generator=g).to(dtype) for _ in count]
    raw = [t.view(torch.int16).numpy().view(TYPES[type_name]) for t in tensors]
    got = operation(f"{name}.{type_name}", len(count)).function(*raw)
    wanted = function(*tensors)
    again = torch.from_numpy(got.view(np.int16)).view(dtype)
    if name == "fma.rn":  # from float64, which torch rounds twice on its way to half precision
        assert ((again - wanted).abs() <= wanted.abs() * 2.0**-7).all()
        assert (again == wanted).float().mean() > 0.99
    else:
        assert torch.equal(again, wanted)


def test_the_coarse_reciprocal_has_20_bits():
    x = np.random.default_rng(0).normal(size=(1, 1000))
    y = apply("rcp.approx.ftz.f64", x)
    assert (np.abs(x * y - 1) < 2.0**-18).all()
    assert ((y.view(np.uint64) & np.uint64(0xFFFFFFFF)) == 0).all()


def test_subnormal_halves_are_not_lost():
    """A product of float32 whose result is subnormal is rounded once."""
    x = np.float32([2.0**-100 * (1 + 2.0**-23)])
    y = np.float32([2.0**-30])
    assert floats.fma(x, y, np.float32([0.0]))[0] == np.float32(float(x[0]) * 2.0**-30)


@pytest.mark.parametrize(
    ("mode", "offset", "clamp", "lanes", "inside"),
    [
        ("bfly", 16, 31, {0: 16, 31: 15}, {0: True}),
        ("up", 1, 0, {0: 0, 1: 0, 31: 30}, {0: False, 1: True}),
        ("down", 2, 31, {29: 31, 30: 30}, {29: True, 30: False}),
        ("idx", 5, 31, {0: 5, 31: 5}, {0: True}),
        ("idx", 5, 0x181F, {0: 5, 9: 13, 31: 29}, {0: True}),
        ("up", 1, 0x1800, {8: 8, 9: 8}, {8: False, 9: True}),
        ("bfly", 4, 0x1C03, {0: 0, 1: 1}, {0: False}),
    ],
)
def test_which_lane_a_shuffle_reads(mode, offset, clamp, lanes, inside):
    got, valid = source_lanes(mode, np.array([[offset]]), np.array([[clamp]]))
    assert {i: got[0, i] for i in lanes} == lanes
    assert {i: valid[0, i] for i in inside} == inside


@pytest.mark.parametrize("opcode", [
    "add.rz.f32", "add.f8", "cvt.f32.f64", "cvt.rz.f16.f32", "cvt.rn.s32.f32", "cvt.s32.f32",
    "fma.f32", "setp.lo.f32", "setp.lt.nand.s32", "max.xorsign.f32", "mul.s32", "add.sat.s32",
    "frob.b32", "and.f32", "cvt.rn.satfinite.e4m3x2.f32", "lop3.b32", "selp.f128", "ex2.f32", "add",
])  # fmt: skip
def test_what_is_not_known_is_named(opcode):
    with pytest.raises(PtxError, match=f"^unknown opcode {opcode}$"):
        operation(opcode, 2)


def test_the_number_of_operands_counts():
    with pytest.raises(PtxError, match=r"unknown opcode add\.f32"):
        operation("add.f32", 3)
