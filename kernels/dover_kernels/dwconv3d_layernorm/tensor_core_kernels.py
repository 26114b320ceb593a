"""The convolution and its weight gradient on tensor cores, for 16-bit activations in channels-last memory (B,T,H,W,C).

A depthwise convolution has no channels to multiply matrices over, but along a row it is a product with a banded matrix:
8 outputs of one channel are 16 inputs (the last two, which no output needs, read as zeros) times a (16,8) Toeplitz
block of the kernel's row. So a matrix product m16n8k16 takes 16 strips of 8 columns through one kernel row of one
channel, and channels are the batch. As in `triton_kernels`, a program marches down its strips, and the output rows that
an input row reaches are accumulated side by side; here the loop is unrolled, so that none has to move.

A fragment wants neighbouring columns (in the weight gradient: strips) of a channel in a register, where memory has
neighbouring channels. Two loaded words of two channels give two words of two columns; shared memory, swizzled so that
neither side conflicts, takes them from the threads that load whole rows of channels to the warps that own a channel.

Channels of a program are numbered in the order of their fragments: warp w of n holds channels w * per ... of `per` =
BC / n consecutive ones, so that a thread has neighbours to store. Names are those of `triton_kernels`; `words` are 32
bits of two 16-bit numbers.
"""
# Gluon compiles a part of Python that has no star in a tuple, and whose types are its own.
# ruff: noqa: RUF005
# mypy: ignore-errors

import math

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

#: Its name from Triton 3.9 on, and before.
copy_to_shared = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared


@gluon.constexpr_function
def _bits(n):
    return n.bit_length() - 1


@gluon.constexpr_function
def _lcm(a, b):
    return math.lcm(a, b)


@gluon.constexpr_function
def _basis(dimension, size):
    """The bases of one of three dimensions."""
    return [[(1 << b) if d == dimension else 0 for d in range(3)] for b in range(_bits(size))]


@gluon.constexpr_function
def _vector(shape, n_warps, most):
    """Bits of the last dimension that a thread loads at once, so that every thread has something to load."""
    return min(most, _bits(shape[0]) + _bits(shape[1]) + _bits(shape[2]) - 5 - _bits(n_warps))


@gluon.constexpr_function
def _memory_layout(shape, n_warps, most):
    """A layout of `shape` that reads memory whose last dimension is contiguous: up to 2**most elements a thread, then
    lanes, then warps, over the dimensions from the last to the first."""
    vector = _vector(shape, n_warps, most)
    last = _basis(2, shape[2])
    rest = last[vector:] + _basis(1, shape[1]) + _basis(0, shape[0])
    lanes, rest = rest[:5], rest[5:]
    warps, rest = rest[: _bits(n_warps)], rest[_bits(n_warps) :]
    return gl.DistributedLinearLayout(last[:vector] + rest, lanes, warps, [], list(shape))


@gluon.constexpr_function
def _shared_layout(N, BC, n_warps):
    """[BC, N, 8] words between the threads that load words (N, 8, BC // 2) and a fragment, without conflicts.

    A fragment is read by rows of 4 words: rows n and n + 4 would meet in a bank, so that the latter's halves change
    places. Channels that lie in lanes as words are stored are spread over the banks that other lanes leave free."""
    per = BC // n_warps
    vector = _vector((N, 8, BC // 2), n_warps, 2)
    in_lanes = list(range(1 + vector, _bits(BC)))[:5]
    free = [1, 2][max(0, 2 - len(in_lanes)) :]
    channels = []
    for b in range(_bits(BC)):
        place = (1 << b) * n_warps if b < _bits(per) else 1 << (b - _bits(per))
        spread = free.pop(0) if b in in_lanes and free else 0
        channels.append([place, spread, 0])
    rows = [[0, 1, 0], [0, 2, 0], [0, 4, 4], [0, 8, 0]][: _bits(N)]
    return gl.SharedLinearLayout([[0, 0, 1], [0, 0, 2], [0, 0, 4]] + rows + channels)


@gluon.constexpr_function
def _fragment_layout(N, BC, n_warps):
    """[BC, N, 8] words as operand A (N = 16 rows) or B (N = 8 columns) of m16n8k16 holds them."""
    channels = _basis(0, BC)
    registers = ([[0, 8, 0]] if N == 16 else []) + [[0, 0, 4]] + channels[_bits(n_warps) :]
    lanes = [[0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 2, 0], [0, 4, 0]]
    return gl.DistributedLinearLayout(registers, lanes, channels[: _bits(n_warps)], [], [BC, N, 8])


@gluon.jit
def _locate(i_strip, n_rows, n_columns, height):
    """Frame, first row and first column of strips, of which a frame has n_rows x n_columns."""
    w0 = (i_strip % n_columns) * 8
    i_row = i_strip // n_columns
    return i_row // n_rows, (i_row % n_rows) * height, w0


@gluon.jit
def _transpose_pairs(b_first, b_second, BC: gl.constexpr, n_warps: gl.constexpr):
    """Words of two channels, [M, N, BC // 2] of each of two neighbours -> their words [BC, M, N] of one channel."""
    b_low = (b_first & 0xFFFF) | (b_second << 16)
    b_high = ((b_first >> 16) & 0xFFFF) | (b_second & -65536)
    M: gl.constexpr = b_first.shape[0]
    N: gl.constexpr = b_first.shape[1]
    b = gl.join(b_low, b_high).reshape(M, N, n_warps, BC // n_warps)
    return b.permute(3, 2, 0, 1).reshape(BC, M, N)


@gluon.jit
def _operand(b_words, layout: gl.constexpr, dtype: gl.constexpr, B: gl.constexpr):
    """Words [BC, N, 8] in a fragment's layout as that fragment: [BC, N, 16], or for operand B [BC, 16, N]."""
    b_low = (b_words & 0xFFFF).to(gl.uint16).to(dtype, bitcast=True)
    b_high = ((b_words >> 16) & 0xFFFF).to(gl.uint16).to(dtype, bitcast=True)
    b = gl.join(b_low, b_high).reshape(b_words.shape[0], b_words.shape[1], 16)
    if B:
        b = b.permute(0, 2, 1)
    return gl.convert_layout(b, layout, assert_trivial=True)


@gluon.jit
def _pairs(p_x, m_even, m_odd, m_strip, i_t, h0, i, kt, T, H, W, C: gl.constexpr, KT: gl.constexpr, K: gl.constexpr):
    """Row h0 + i - K // 2 of the frame that tap kt meets: pointers to its even columns, words [16, 8, BC // 2], and
    which even and which odd columns exist."""
    h = h0 + (i - K // 2)
    t = i_t + (kt - KT // 2)
    m_row = m_strip & (h >= 0) & (h < H) & (t >= 0) & (t < T)
    p = p_x + ((kt - KT // 2) * H.to(gl.int64) + (i - K // 2)) * W * (C // 2)
    return p, (m_row[:, None] & m_even)[:, :, None], (m_row[:, None] & m_odd)[:, :, None]


@gluon.jit
def _load_pairs(pairs, C: gl.constexpr):
    """Even and odd columns, which come into registers."""
    p, m_even, m_odd = pairs
    return gl.load(p, mask=m_even, other=0), gl.load(p + C // 2, mask=m_odd, other=0)


@gluon.jit
def _copy_pairs(s_even, s_odd, pairs, C: gl.constexpr):
    """Even and odd columns, which come into shared memory; zeros in place of columns that do not exist."""
    p, m_even, m_odd = pairs
    copy_to_shared(s_even, p, m_even)
    copy_to_shared(s_odd, p + C // 2, m_odd)
    async_copy.commit_group()


@gluon.jit
def _add_row(b_acc, b_x, b_w, first: gl.constexpr, n: gl.constexpr):
    """Adds a row of x, times kernel rows `first` and those after it, to the n output rows that were begun last."""
    b_new = ()
    for a in gl.static_range(n):
        b_new = b_new + (mma_v2(b_x, b_w[first + a], b_acc[a]),)
    return b_new + b_acc[n:]


@gluon.jit
def _store_row(p_y, b_acc, h, h0, m_out, height, H, W, C: gl.constexpr, layout: gl.constexpr):
    """Row h of the strips, accumulated in fragments [BC, 16, 8]."""
    NW: gl.constexpr = gl.num_warps()
    BC: gl.constexpr = b_acc.shape[0]
    b_y = b_acc.to(p_y.dtype.element_ty).reshape(BC // NW, NW, 16, 8).permute(2, 3, 1, 0).reshape(16, 8, BC)
    m_row = (h >= 0) & (h < height) & (h0 + h < H)
    gl.store(p_y + (h * W.to(gl.int64)) * C, gl.convert_layout(b_y, layout), mask=(m_row[:, None] & m_out)[:, :, None])


@gluon.jit(do_not_specialize=["T", "H", "W", "n_rows", "n_columns", "n_strips", "height"])
def convolution_kernel(
    p_x, p_weight, p_bias, p_y, T, H, W, n_rows, n_columns, n_strips, height,
    C: gl.constexpr, KT: gl.constexpr, K: gl.constexpr, BC: gl.constexpr, AHEAD: gl.constexpr, FLIP: gl.constexpr,
):  # fmt: skip
    """y = conv(x) + bias, or with FLIP the adjoint of conv, without a bias. p_x: words; p_weight: (C,KT,K,K), rounded
    to y's dtype here. Program: (16 strips, BC channels); AHEAD rows of x are on their way while one is multiplied.

    A row of x meets K rows of y, whose sums fill the registers. Where there is one tap in time, a row meets the
    K // 2 + 1 that were begun first as it comes, and the others K // 2 steps later, when they have been begun as well:
    K // 2 + 1 sums are held at a time, and shared memory keeps the row, and takes those on their way.

    A strip that is as high as its frame meets no row above or below it: its march begins K // 2 steps later, and its
    last rows are finished without it."""
    NW: gl.constexpr = gl.num_warps()
    PER: gl.constexpr = BC // NW
    dtype: gl.constexpr = p_y.dtype.element_ty
    MMA: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [NW, 1, 1], [1, 16, 8])
    A: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    B: gl.constexpr = gl.DotOperandLayout(1, MMA, 2)
    IN: gl.constexpr = _memory_layout((16, 8, BC // 2), NW, 2)
    OUT: gl.constexpr = _memory_layout((16, 8, BC), NW, 3)
    PLAIN: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    FRAGMENT: gl.constexpr = _fragment_layout(16, BC, NW)
    HALVES: gl.constexpr = KT == 1
    LIVE: gl.constexpr = K // 2 + 1 if HALVES else K  # rows of y that are being summed, and of x in fragments
    UNROLL: gl.constexpr = _lcm(LIVE, AHEAD) if HALVES else K
    pid = gl.program_id(0)
    c0 = (pid % (C // BC)) * BC
    first = (pid // (C // BC)) * 16

    i_strip = first + gl.arange(0, 16, layout=gl.SliceLayout(1, gl.SliceLayout(2, IN)))
    o_k = 2 * gl.arange(0, 8, layout=gl.SliceLayout(0, gl.SliceLayout(2, IN))) - K // 2
    o_c = gl.arange(0, BC // 2, layout=gl.SliceLayout(0, gl.SliceLayout(1, IN)))
    m_strip = i_strip < n_strips
    i_frame, h0, w0 = _locate(i_strip, n_rows, n_columns, height)
    i_t = i_frame % T
    o_strip = (i_frame.to(gl.int64) * H + h0) * W + w0
    w = w0[:, None] + o_k[None, :]
    m_even = (w >= 0) & (w < W) & (o_k < 8 + K // 2)[None, :]
    m_odd = (w >= -1) & (w < W - 1) & (o_k < 7 + K // 2)[None, :]
    p_x += (o_strip * (C // 2))[:, None, None] + (o_k * (C // 2))[None, :, None] + (c0 // 2 + o_c)[None, None, :]

    i_strip = first + gl.arange(0, 16, layout=gl.SliceLayout(1, gl.SliceLayout(2, OUT)))
    o_n = gl.arange(0, 8, layout=gl.SliceLayout(0, gl.SliceLayout(2, OUT)))
    o_c = gl.arange(0, BC, layout=gl.SliceLayout(0, gl.SliceLayout(1, OUT)))
    i_frame, h0_out, w0 = _locate(i_strip, n_rows, n_columns, height)
    m_out = (i_strip < n_strips)[:, None] & (w0[:, None] + o_n[None, :] < W)
    o_strip = (i_frame.to(gl.int64) * H + h0_out) * W + w0
    p_y += (o_strip * C)[:, None, None] + (o_n * C)[None, :, None] + (c0 + o_c)[None, None, :]

    i_c = gl.arange(0, BC, layout=gl.SliceLayout(1, gl.SliceLayout(2, B)))
    i_k = gl.arange(0, 16, layout=gl.SliceLayout(0, gl.SliceLayout(2, B)))
    i_n = gl.arange(0, 8, layout=gl.SliceLayout(0, gl.SliceLayout(1, B)))
    kw = i_k[None, :, None] - i_n[None, None, :]
    m_w = (kw >= 0) & (kw < K)
    if FLIP:
        kw = (K - 1) - kw
    p_weight += ((c0 + i_c % NW * PER + i_c // NW) * (KT * K * K))[:, None, None] + kw
    b_w = ()
    for q in gl.static_range(KT * K):
        p_row = p_weight + (KT * K - 1 - q if FLIP else q) * K
        b_w = b_w + (gl.load(p_row, mask=m_w, other=0.0).to(dtype),)
    b_start = gl.zeros([BC, 16, 8], gl.float32, MMA)
    if not FLIP:
        i_c = gl.arange(0, BC, layout=gl.SliceLayout(1, gl.SliceLayout(2, MMA)))
        b_start += gl.load(p_bias + c0 + i_c % NW * PER + i_c // NW).to(gl.float32)[:, None, None]

    b_acc = ()  # the row that was begun last comes first
    s_x = ()
    for _ in gl.static_range(LIVE):
        b_acc = b_acc + (b_start,)
        s_x = s_x + (gl.allocate_shared_memory(gl.int32, [BC, 16, 8], _shared_layout(16, BC, NW)),)
    i0 = 0
    if n_rows == 1:
        i0 += K // 2
    end = height + (K - 1) - i0
    b_next = ()
    s_even = ()
    s_odd = ()
    for a in gl.static_range(AHEAD):
        pairs = _pairs(p_x, m_even, m_odd, m_strip, i_t, h0, i0 + a // KT, a % KT, T, H, W, C, KT, K)
        if HALVES:
            s_even = s_even + (gl.allocate_shared_memory(gl.int32, [16, 8, BC // 2], PLAIN),)
            s_odd = s_odd + (gl.allocate_shared_memory(gl.int32, [16, 8, BC // 2], PLAIN),)
            _copy_pairs(s_even[a], s_odd[a], pairs, C)
        else:
            b_next = b_next + (_load_pairs(pairs, C),)
    if HALVES:
        for r in gl.static_range(1, LIVE):  # rows above the first
            s_x[r].store(gl.zeros([BC, 16, 8], gl.int32, FRAGMENT))
    while i0 < end:
        for s in gl.static_range(UNROLL):
            i = i0 + s
            for kt in gl.static_range(KT):
                pairs = _pairs(
                    p_x, m_even, m_odd, m_strip, i_t, h0, i + (kt + AHEAD) // KT, (kt + AHEAD) % KT, T, H, W, C, KT, K
                )
                if HALVES:
                    async_copy.wait_group(AHEAD - 1)
                    b_even, b_odd = s_even[s % AHEAD].load(IN), s_odd[s % AHEAD].load(IN)
                else:
                    b_even, b_odd = b_next[0]
                s_x[(s * KT + kt) % LIVE].store(_transpose_pairs(b_even, b_odd, BC, NW))
                if not HALVES:
                    b_next = b_next[1:] + (_load_pairs(pairs, C),)
                b_x = _operand(s_x[(s * KT + kt) % LIVE].load(FRAGMENT), A, dtype, False)
                if HALVES:  # after the barrier before that fragment, with which the place is free
                    _copy_pairs(s_even[s % AHEAD], s_odd[s % AHEAD], pairs, C)
                b_acc = _add_row(b_acc, b_x, b_w, kt * K + (K - LIVE), LIVE)
            if HALVES:
                b_x = _operand(s_x[(s + 1) % LIVE].load(FRAGMENT), A, dtype, False)
                b_acc = _add_row(b_acc, b_x, b_w, 0, K - LIVE)
            _store_row(p_y, b_acc[LIVE - 1], i - (K - 1), h0_out, m_out, height, H, W, C, OUT)
            b_acc = (b_start,) + b_acc[: LIVE - 1]
        i0 += UNROLL
    if HALVES:
        async_copy.wait_group(0)
    if n_rows == 1:
        for s in gl.static_range(K // 2):
            if HALVES:
                b_x = _operand(s_x[(s + 1) % LIVE].load(FRAGMENT), A, dtype, False)
                b_acc = _add_row(b_acc, b_x, b_w, 0, K - LIVE)
            _store_row(p_y, b_acc[LIVE - 1], i0 + (s - (K - 1)), h0_out, m_out, height, H, W, C, OUT)
            b_acc = (b_start,) + b_acc[: LIVE - 1]


@gluon.jit
def _strips(
    p, i_strip, o_column, o_c, d_t, n_columns, n_strips, T, H, W, C: gl.constexpr, K: gl.constexpr, HALO: gl.constexpr
):
    """Columns o_column of strips i_strip, beyond them too with HALO: pointers to their first rows, words [columns,
    strips, BC // 2], which columns exist, and which strips meet a frame at distance d_t."""
    i_frame, w0 = i_strip // n_columns, (i_strip % n_columns) * 8
    i_t = i_frame % T + d_t
    o_strip = i_frame.to(gl.int64) * H * W + w0
    m_strip = (i_strip < n_strips) & (i_t >= 0) & (i_t < T)
    if HALO:
        w = w0[None, :] + o_column[:, None]
        m_column = (w >= 0) & (w < W) & (o_column < 8 + K // 2)[:, None]
    else:
        m_column = w0[None, :] + o_column[:, None] < W
    p += (o_column * (C // 2))[:, None, None] + (o_strip * (C // 2))[None, :, None] + o_c[None, None, :]
    return p, m_column & m_strip[None, :]


@gluon.jit
def _copy_row(s_row, strips, h, d_t, H, W, C: gl.constexpr):
    """Row h of strips, of the frame at distance d_t, which comes into shared memory."""
    p, m = strips
    m_row = (m & (h < H))[:, :, None]
    copy_to_shared(s_row, p + (d_t * H.to(gl.int64) + h) * W * (C // 2), m_row)


@gluon.jit
def _copy_step(s_raw, strips_x, strips_dy, h, d_t, H, W, C: gl.constexpr, K: gl.constexpr):
    """Row h of x, and the lowest row of dy that it meets, of even and of odd strips."""
    for e in gl.static_range(2):
        _copy_row(s_raw[e], strips_x[e], h, d_t, H, W, C)
        _copy_row(s_raw[2 + e], strips_dy[e], h + K // 2, 0, H, W, C)
    async_copy.commit_group()


@gluon.jit
def _load_row(strips, h, H, W, C: gl.constexpr):
    """Row h of strips, which comes into registers."""
    p, m = strips
    return gl.load(p + h * W.to(gl.int64) * (C // 2), mask=(m & (h < H))[:, :, None], other=0)


@gluon.jit(do_not_specialize=["T", "H", "W", "n_columns", "n_strips", "n_slabs"])
def weight_gradient_kernel(
    p_x, p_dy, p_partial, T, H, W, n_columns, n_strips, n_slabs,
    C: gl.constexpr, KT: gl.constexpr, K: gl.constexpr, BC: gl.constexpr, AHEAD: gl.constexpr, dtype: gl.constexpr,
):  # fmt: skip
    """This slab's share of the weight gradient, [slab, KT * K * K, C] fp32; p_x, p_dy: words. Program: (slab, k_t,
    BC channels).

    For each kernel row, 16 columns of x times 8 columns of dy, summed over strips: the diagonals are the taps, and are
    added up at the end. Strips are as high as their frame; the K rows of dy that a row of x meets stay in registers."""
    NW: gl.constexpr = gl.num_warps()
    PER: gl.constexpr = BC // NW
    MMA: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [NW, 1, 1], [1, 16, 8])
    A: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    B: gl.constexpr = gl.DotOperandLayout(1, MMA, 2)
    X: gl.constexpr = _memory_layout((16, 8, BC // 2), NW, 2)  # columns, pairs of strips, words
    DY: gl.constexpr = _memory_layout((8, 8, BC // 2), NW, 2)
    pid = gl.program_id(0)
    c0 = (pid % (C // BC)) * BC
    kt = pid // (C // BC) % KT
    i_slab = pid // (C // BC * KT)
    d_t = kt - KT // 2
    i_pair_x = 2 * gl.arange(0, 8, layout=gl.SliceLayout(0, gl.SliceLayout(2, X)))
    i_pair_dy = 2 * gl.arange(0, 8, layout=gl.SliceLayout(0, gl.SliceLayout(2, DY)))
    o_k = gl.arange(0, 16, layout=gl.SliceLayout(1, gl.SliceLayout(2, X))) - K // 2
    o_n = gl.arange(0, 8, layout=gl.SliceLayout(1, gl.SliceLayout(2, DY)))
    o_c_x = c0 // 2 + gl.arange(0, BC // 2, layout=gl.SliceLayout(0, gl.SliceLayout(1, X)))
    o_c_dy = c0 // 2 + gl.arange(0, BC // 2, layout=gl.SliceLayout(0, gl.SliceLayout(1, DY)))
    PLAIN: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    FRAGMENT_X: gl.constexpr = _fragment_layout(16, BC, NW)
    FRAGMENT_DY: gl.constexpr = _fragment_layout(8, BC, NW)
    b_acc = ()
    for _ in gl.static_range(K):
        b_acc = b_acc + (gl.zeros([BC, 16, 8], gl.float32, MMA),)
    s_x = ()
    s_dy = ()
    for _ in gl.static_range(2):  # in turns, so that one is written while the other is still read
        s_x = s_x + (gl.allocate_shared_memory(gl.int32, [BC, 16, 8], _shared_layout(16, BC, NW)),)
        s_dy = s_dy + (gl.allocate_shared_memory(gl.int32, [BC, 8, 8], _shared_layout(8, BC, NW)),)
    s_raw = ()
    for _ in gl.static_range(AHEAD):
        s_raw = s_raw + (
            (
                gl.allocate_shared_memory(gl.int32, [16, 8, BC // 2], PLAIN),
                gl.allocate_shared_memory(gl.int32, [16, 8, BC // 2], PLAIN),
                gl.allocate_shared_memory(gl.int32, [8, 8, BC // 2], PLAIN),
                gl.allocate_shared_memory(gl.int32, [8, 8, BC // 2], PLAIN),
            ),
        )
    first = i_slab * 16
    while first < n_strips:
        strips_x = ()
        strips_dy = ()
        for e in gl.static_range(2):
            strips_x = strips_x + (
                _strips(p_x, first + e + i_pair_x, o_k, o_c_x, d_t, n_columns, n_strips, T, H, W, C, K, HALO=True),
            )
            strips_dy = strips_dy + (
                _strips(p_dy, first + e + i_pair_dy, o_n, o_c_dy, d_t, n_columns, n_strips, T, H, W, C, K, HALO=False),
            )
        for h in gl.static_range(AHEAD):
            _copy_step(s_raw[h], strips_x, strips_dy, h, d_t, H, W, C, K)
        b_dy = ()  # the lowest row comes first; those above the frame are zeros
        for h in gl.static_range(K // 2):
            b_even = _load_row(strips_dy[0], h, H, W, C)
            b_odd = _load_row(strips_dy[1], h, H, W, C)
            s_dy[h % 2].store(_transpose_pairs(b_even, b_odd, BC, NW))
            b_dy = (s_dy[h % 2].load(FRAGMENT_DY),) + b_dy
        for _ in gl.static_range(K - K // 2):
            b_dy = b_dy + (gl.zeros([BC, 8, 8], gl.int32, FRAGMENT_DY),)
        h0 = 0
        while h0 < H:
            for s in gl.static_range(AHEAD):
                async_copy.wait_group(AHEAD - 1)
                s_x[s % 2].store(_transpose_pairs(s_raw[s][0].load(X), s_raw[s][1].load(X), BC, NW))
                s_dy[s % 2].store(_transpose_pairs(s_raw[s][2].load(DY), s_raw[s][3].load(DY), BC, NW))
                b_dy = (s_dy[s % 2].load(FRAGMENT_DY),) + b_dy[: K - 1]
                b_x = _operand(s_x[s % 2].load(FRAGMENT_X), A, dtype, False)
                _copy_step(s_raw[s], strips_x, strips_dy, h0 + (s + AHEAD), d_t, H, W, C, K)
                b_new = ()
                for kh in gl.static_range(K):
                    b_new = b_new + (mma_v2(b_x, _operand(b_dy[kh], B, dtype, True), b_acc[kh]),)
                b_acc = b_new
            h0 += AHEAD
        async_copy.wait_group(0)
        first += n_slabs * 16
    i_c = gl.arange(0, BC, layout=gl.SliceLayout(1, gl.SliceLayout(2, MMA)))
    i_k = gl.arange(0, 16, layout=gl.SliceLayout(0, gl.SliceLayout(2, MMA)))
    i_n = gl.arange(0, 8, layout=gl.SliceLayout(0, gl.SliceLayout(1, MMA)))
    diagonal = i_k[None, :, None] - i_n[None, None, :]
    p_out = p_partial + ((i_slab * KT + kt).to(gl.int64) * (K * K)) * C + c0 + i_c % NW * PER + i_c // NW
    for kh in gl.static_range(K):
        for kw in gl.static_range(K):
            b_taps = gl.where(diagonal == kw, b_acc[kh], 0.0)
            gl.store(p_out + (kh * K + kw) * C, gl.sum(gl.sum(b_taps, 2), 1))
