"""The operator's Triton kernels, on channels-last memory (B,T,H,W,C). Nothing here allocates or differentiates.

The convolution kernels march down *strips*: `height` rows of R columns of one frame. A program holds BP strips of NC
chunks of BC channels, so that a thread owns whole columns of a channel, and each element of x that it loads feeds all
of its taps from a register: the K output rows that the current input row reaches are accumulated side by side, and
rotate by one at each step. Strips are numbered over (frame, strip row, strip column), so that small frames share a
program and no lane idles at a frame's edge.

The products of one output are added in the order (k_h, k_t, k_w) whatever R, BP, BC, NC and `height` are: the same
bits for every configuration, and so in every batch.

Names: `i_` index, `o_` offset in elements, `m_` mask, `p_` pointer, `b_` block of values. Frames are counted over
(B,T); every offset that grows with them is int64.
"""
# Triton compiles a part of Python that has no star in a tuple, and whose types are its own.
# ruff: noqa: RUF005, SIM108
# mypy: ignore-errors

import triton
import triton.language as tl

# Sizes that vary from call to call: a value of 1 or a multiple of 16 is not worth a compilation of its own.
_STRIPS = ["T", "H", "W", "n_rows", "n_columns", "n_strips", "height"]


@triton.jit
def _locate(i_strip, n_rows, n_columns, height, R: tl.constexpr):
    """Frame, first row and first column of strips, of which a frame has n_rows x n_columns."""
    w0 = (i_strip % n_columns) * R
    i_row = i_strip // n_columns
    h0 = (i_row % n_rows) * height
    i_frame = i_row // n_rows
    return i_frame, h0, w0


@triton.jit
def _column_mask(m_row, w0, W, OFFSET: tl.constexpr, R: tl.constexpr, EVEN: tl.constexpr):
    """Which strips have column w0 + OFFSET. If R divides W (EVEN), three masks serve all columns of a row."""
    if EVEN:
        if OFFSET < 0:
            mask = m_row & (w0 > 0)
        elif OFFSET < R:
            mask = m_row
        else:
            mask = m_row & (w0 + R < W)
    else:
        mask = m_row & (w0 + OFFSET >= 0) & (w0 + OFFSET < W)
    return mask[:, None]


@triton.jit
def _load_row(
    p_row, m_row, w0, W,
    C: tl.constexpr, FIRST: tl.constexpr, N: tl.constexpr, R: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Columns FIRST ... FIRST + N - 1 of a row, a tuple of fp32 blocks [BP, BC] with zeros outside of the frame."""
    b_x = ()
    for j in tl.static_range(N):
        mask = _column_mask(m_row, w0, W, FIRST + j, R, EVEN)
        b_x = b_x + (tl.load(p_row + (FIRST + j) * C, mask=mask, other=0.0).to(tl.float32),)
    return b_x


@triton.jit
def _zeros(N: tl.constexpr, M: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """N rows of M blocks [BP, BC] of zeros, a tuple of tuples."""
    b_zeros = ()
    for _ in tl.static_range(N):
        b_row = ()
        for _ in tl.static_range(M):
            b_row = b_row + (tl.zeros((BP, BC), tl.float32),)
        b_zeros = b_zeros + (b_row,)
    return b_zeros


@triton.jit
def _correlate(b_acc, b_x, b_w, N: tl.constexpr, M: tl.constexpr):
    """acc[i] + the sum over j < M of x[i + j] * w[j], for i < N."""
    b_out = ()
    for i in tl.static_range(N):
        b_sum = b_acc[i]
        for j in tl.static_range(M):
            b_sum = tl.fma(b_x[i + j], b_w[j], b_sum)
        b_out = b_out + (b_sum,)
    return b_out


@triton.jit
def _apply_taps(b_acc, b_x, p_taps, C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, FLIP: tl.constexpr):
    """Adds one input row's share to the K output rows that it reaches; row kh of `acc` takes kernel row kh."""
    b_out = ()
    for kh in tl.static_range(K):
        b_w = ()
        for kw in tl.static_range(K):
            if FLIP:
                b_w = b_w + (tl.load(p_taps + ((K - 1 - kh) * K + (K - 1 - kw)) * C)[None, :],)
            else:
                b_w = b_w + (tl.load(p_taps + (kh * K + kw) * C)[None, :],)
        b_out = b_out + (_correlate(b_acc[kh], b_x, b_w, R, K),)
    return b_out


@triton.jit
def _add_bias(b_row, p_bias, dtype: tl.constexpr, R: tl.constexpr, BIAS: tl.constexpr):
    """A finished row in the dtype in which it is stored: LayerNorm sees what a separate kernel would read."""
    b_out = ()
    for r in tl.static_range(R):
        b_y = b_row[r]
        if BIAS:
            b_y += tl.load(p_bias).to(tl.float32)[None, :]
        b_out = b_out + (b_y.to(dtype),)
    return b_out


@triton.jit
def _store_row(
    p_row, b_row, m_row, w0, W, C: tl.constexpr, R: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    for r in tl.static_range(R):
        tl.store(p_row + r * C, b_row[r], mask=_column_mask(m_row, w0, W, r, R, EVEN))


@triton.jit
def _sum_over_channels(b_rows, N: tl.constexpr):
    """N blocks [BP, BC] -> N blocks [BP]. As one block, so that warps that share a row meet once, and not N times."""
    b_joined = b_rows
    for _ in tl.static_range(5):  # up to 32 of them
        if len(b_joined) > 1:
            b_pairs = ()
            for i in tl.static_range((len(b_joined) + 1) // 2):
                # No min() in the subscript: Triton before 3.6 fails on it.
                b_other = b_joined[(2 * i + 1) if 2 * i + 1 < len(b_joined) else (2 * i)]
                b_pairs = b_pairs + (tl.join(b_joined[2 * i], b_other),)
            b_joined = b_pairs
    b_sums = (tl.sum(b_joined[0], 1),)
    for _ in tl.static_range(5):
        if len(b_sums) < N:
            b_halves = ()
            for i in tl.static_range(len(b_sums)):
                b_halves = b_halves + tl.split(b_sums[i])
            b_sums = b_halves
    return b_sums


@triton.jit
def _row_mean(b_y, C: tl.constexpr, NC: tl.constexpr, R: tl.constexpr):
    """The mean over the channels of all NC chunks, for R columns: blocks [BP]."""
    b_sums = ()
    for r in tl.static_range(R):
        b_sum = b_y[0][r].to(tl.float32)
        for n in tl.static_range(NC - 1):
            b_sum += b_y[n + 1][r].to(tl.float32)
        b_sums = b_sums + (b_sum,)
    b_sums = _sum_over_channels(b_sums, R)
    b_out = ()
    for r in tl.static_range(R):
        b_out = b_out + (b_sums[r] / C,)
    return b_out


@triton.jit
def _row_rstd(b_y, b_mean, eps, C: tl.constexpr, NC: tl.constexpr, R: tl.constexpr):
    """1 / sqrt(variance + eps), the variance taken about the mean, for R columns: blocks [BP]."""
    b_sums = ()
    for r in tl.static_range(R):
        b_centred = b_y[0][r].to(tl.float32) - b_mean[r][:, None]
        b_sum = b_centred * b_centred
        for n in tl.static_range(NC - 1):
            b_centred = b_y[n + 1][r].to(tl.float32) - b_mean[r][:, None]
            b_sum += b_centred * b_centred
        b_sums = b_sums + (b_sum,)
    b_sums = _sum_over_channels(b_sums, R)
    b_out = ()
    for r in tl.static_range(R):
        b_out = b_out + (tl.rsqrt(b_sums[r] / C + eps),)
    return b_out


@triton.jit
def _normalize_row(b_row, b_mean, b_rstd, p_gamma, p_beta, R: tl.constexpr):
    b_gamma = tl.load(p_gamma).to(tl.float32)[None, :]
    b_beta = tl.load(p_beta).to(tl.float32)[None, :]
    b_out = ()
    for r in tl.static_range(R):
        b_hat = (b_row[r].to(tl.float32) - b_mean[r][:, None]) * b_rstd[r][:, None]
        b_out = b_out + ((b_hat * b_gamma + b_beta).to(b_row[r].dtype),)
    return b_out


@triton.jit(do_not_specialize=_STRIPS)
def convolution_kernel(
    p_x, p_taps, p_bias, p_gamma, p_beta, p_y, p_z, p_mean, p_rstd,
    T, H, W, n_rows, n_columns, n_strips, height, eps,
    C: tl.constexpr, KT: tl.constexpr, K: tl.constexpr, R: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
    NC: tl.constexpr, EVEN: tl.constexpr, FLIP: tl.constexpr, NORM: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Program: (BP strips, NC chunks of channels). y = conv(x) + bias, stored if SAVE; with FLIP the adjoint of conv,
    without a bias; with NORM (NC * BC = C) also z = LayerNorm(y), and with SAVE its mean and rstd in fp32."""
    pid = tl.program_id(0)
    n_groups: tl.constexpr = C // (BC * NC)
    o_c = (pid % n_groups) * (BC * NC) + tl.arange(0, BC)
    i_strip = (pid // n_groups) * BP + tl.arange(0, BP)
    m_strip = i_strip < n_strips
    i_frame, h0, w0 = _locate(i_strip, n_rows, n_columns, height, R)
    i_t = i_frame % T
    o_strip = (i_frame.to(tl.int64) * H + h0) * W + w0  # [BP], in positions
    b_acc = ()
    for _ in tl.static_range(NC):
        b_acc = b_acc + (_zeros(K, R, BP, BC),)
    i = 0
    while i < height + (K - 1):
        h_in = h0 + (i - K // 2)
        m_h = m_strip & (h_in >= 0) & (h_in < H)
        # Where a strip is a whole column of its frame, no strip of this program has this row above or below it.
        if (n_rows > 1) | ((i >= K // 2) & (i < H + K // 2)):
            for kt in range(KT):
                d_t = kt - KT // 2
                m_t = m_h & (i_t + d_t >= 0) & (i_t + d_t < T)
                o_row = (o_strip + (tl.cast(d_t, tl.int64) * H + (i - K // 2)) * W) * C
                if FLIP:
                    p_taps_t = p_taps + (KT - 1 - kt) * K * K * C + o_c
                else:
                    p_taps_t = p_taps + kt * K * K * C + o_c
                b_new = ()
                for n in tl.static_range(NC):
                    p_row = p_x + o_row[:, None] + (o_c + n * BC)[None, :]  # [BP, BC]
                    b_x = _load_row(p_row, m_t, w0, W, C, -(K // 2), R + K - 1, R, EVEN)
                    b_new = b_new + (_apply_taps(b_acc[n], b_x, p_taps_t + n * BC, C, K, R, FLIP),)
                b_acc = b_new
        if i >= K - 1:
            m_out = m_strip & (h_in - K // 2 < H)
            o_out = o_strip + tl.cast(i - (K - 1), tl.int64) * W
            b_y = ()
            for n in tl.static_range(NC):
                b_y = b_y + (_add_bias(b_acc[n][K - 1], p_bias + o_c + n * BC, p_y.dtype.element_ty, R, not FLIP),)
            if SAVE:
                for n in tl.static_range(NC):
                    p_out = p_y + (o_out * C)[:, None] + (o_c + n * BC)[None, :]
                    _store_row(p_out, b_y[n], m_out, w0, W, C, R, EVEN)
            if NORM:
                b_mean = _row_mean(b_y, C, NC, R)
                b_rstd = _row_rstd(b_y, b_mean, eps, C, NC, R)
                for n in tl.static_range(NC):
                    p_out = p_z + (o_out * C)[:, None] + (o_c + n * BC)[None, :]
                    b_z = _normalize_row(b_y[n], b_mean, b_rstd, p_gamma + o_c + n * BC, p_beta + o_c + n * BC, R)
                    _store_row(p_out, b_z, m_out, w0, W, C, R, EVEN)
                if SAVE:
                    for r in tl.static_range(R):
                        m_column = m_out & (w0 + r < W)
                        tl.store(p_mean + o_out + r, b_mean[r], mask=m_column)
                        tl.store(p_rstd + o_out + r, b_rstd[r], mask=m_column)
        b_rotated = ()
        for n in tl.static_range(NC):
            b_rotated = b_rotated + (_zeros(1, R, BP, BC) + b_acc[n][: K - 1],)
        b_acc = b_rotated
        i += 1


@triton.jit(do_not_specialize=["n_positions"])
def layernorm_kernel(
    p_y, p_z, p_gamma, p_beta, p_mean, p_rstd, n_positions, eps,
    C: tl.constexpr, CP: tl.constexpr, BM: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """z = LayerNorm(y), for BM positions of C <= CP channels a program. z may be y.

    From the last position to the first: the convolution has just written the last, and the L2 cache still has them.
    """
    i_block = tl.num_programs(0) - 1 - tl.program_id(0)
    i_row = i_block.to(tl.int64) * BM + tl.arange(0, BM)
    m_row = i_row < n_positions
    o_c = tl.arange(0, CP)
    m_c = o_c < C
    mask = m_row[:, None] & m_c[None, :]
    offsets = i_row[:, None] * C + o_c[None, :]  # [BM, CP]
    b_y = tl.load(p_y + offsets, mask=mask, other=0.0).to(tl.float32)
    b_mean = tl.sum(b_y, 1) / C
    b_centred = tl.where(m_c[None, :], b_y - b_mean[:, None], 0.0)
    b_rstd = tl.rsqrt(tl.sum(b_centred * b_centred, 1) / C + eps)
    b_gamma = tl.load(p_gamma + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    b_beta = tl.load(p_beta + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    b_z = b_centred * b_rstd[:, None] * b_gamma + b_beta
    tl.store(p_z + offsets, b_z.to(p_z.dtype.element_ty), mask=mask)
    if SAVE:
        tl.store(p_mean + i_row, b_mean, mask=m_row)
        tl.store(p_rstd + i_row, b_rstd, mask=m_row)


@triton.jit(do_not_specialize=["n_positions"])
def layernorm_backward_kernel(
    p_dz, p_y, p_gamma, p_mean, p_rstd, p_dy, p_partial, n_positions,
    C: tl.constexpr, CP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """dy, and this program's share of d(gamma), d(beta) and d(bias), which is the sum of dy: [program, 3, C] fp32."""
    pid = tl.program_id(0)
    o_c = tl.arange(0, CP)
    m_c = o_c < C
    b_gamma = tl.load(p_gamma + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    b_dgamma = tl.zeros((BM, CP), tl.float32)
    b_dbeta = tl.zeros((BM, CP), tl.float32)
    b_dbias = tl.zeros((BM, CP), tl.float32)
    first = pid.to(tl.int64) * BM
    while first < n_positions:
        i_row = first + tl.arange(0, BM)
        m_row = i_row < n_positions
        mask = m_row[:, None] & m_c[None, :]
        offsets = i_row[:, None] * C + o_c[None, :]  # [BM, CP]
        b_dz = tl.load(p_dz + offsets, mask=mask, other=0.0).to(tl.float32)
        b_y = tl.load(p_y + offsets, mask=mask, other=0.0).to(tl.float32)
        b_mean = tl.load(p_mean + i_row, mask=m_row, other=0.0)[:, None]
        b_rstd = tl.load(p_rstd + i_row, mask=m_row, other=0.0)[:, None]
        b_hat = tl.where(mask, (b_y - b_mean) * b_rstd, 0.0)
        b_dhat = b_dz * b_gamma
        b_c1 = tl.sum(b_dhat, 1)[:, None] / C
        b_c2 = tl.sum(b_dhat * b_hat, 1)[:, None] / C
        b_dy = tl.where(mask, (b_dhat - b_c1 - b_hat * b_c2) * b_rstd, 0.0)
        tl.store(p_dy + offsets, b_dy.to(p_dy.dtype.element_ty), mask=mask)
        b_dgamma += b_dz * b_hat
        b_dbeta += b_dz
        b_dbias += b_dy
        first += tl.num_programs(0).to(tl.int64) * BM
    p_out = p_partial + pid.to(tl.int64) * 3 * C + o_c
    tl.store(p_out, tl.sum(b_dgamma, 0), mask=m_c)
    tl.store(p_out + C, tl.sum(b_dbeta, 0), mask=m_c)
    tl.store(p_out + 2 * C, tl.sum(b_dbias, 0), mask=m_c)


@triton.jit(do_not_specialize=[*_STRIPS, "n_slabs"])
def weight_gradient_kernel(
    p_x, p_dy, p_partial, T, H, W, n_rows, n_columns, n_strips, height, n_slabs,
    C: tl.constexpr, KT: tl.constexpr, K: tl.constexpr, R: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """This slab's share of the weight gradient, [slab, KT * K * K, C] fp32. Program: (slab, k_t, chunk).

    The march of `convolution_kernel` with the parts of accumulators and weights exchanged: the K rows of dy that the
    current row of x reaches rotate in registers, and K * K sums grow. A slab takes every n_slabs-th group of strips."""
    pid = tl.program_id(0)
    o_c = (pid % (C // BC)) * BC + tl.arange(0, BC)
    kt = pid // (C // BC) % KT
    i_slab = pid // (C // BC * KT)
    d_t = kt - KT // 2
    b_acc = _zeros(K, K, BP, BC)
    first = i_slab * BP
    while first < n_strips:
        i_strip = first + tl.arange(0, BP)
        i_frame, h0, w0 = _locate(i_strip, n_rows, n_columns, height, R)
        i_t = i_frame % T + d_t
        m_strip = (i_strip < n_strips) & (i_t >= 0) & (i_t < T)
        o_strip = (i_frame.to(tl.int64) * H + h0) * W + w0  # [BP], in positions
        b_dy = _zeros(K, R, BP, BC)  # row kh: the row of dy that kernel row kh ties to the row of x
        i = 0
        while i < height + (K - 1):
            h_dy = h0 + (i - K // 2)
            m_dy = m_strip & (h_dy >= 0) & (h_dy < H)
            p_row = p_dy + ((o_strip + tl.cast(i - K // 2, tl.int64) * W) * C)[:, None] + o_c[None, :]  # [BP, BC]
            b_dy = (_load_row(p_row, m_dy, w0, W, C, 0, R, R, EVEN),) + b_dy[: K - 1]
            if i >= K - 1:
                m_x = m_strip & (h_dy - K // 2 < H)
                o_x = o_strip + (tl.cast(d_t, tl.int64) * H + (i - (K - 1))) * W
                p_row_x = p_x + (o_x * C)[:, None] + o_c[None, :]
                b_x = _load_row(p_row_x, m_x, w0, W, C, -(K // 2), R + K - 1, R, EVEN)
                b_new = ()
                for kh in tl.static_range(K):
                    b_new = b_new + (_correlate(b_acc[kh], b_x, b_dy[kh], K, R),)
                b_acc = b_new
            i += 1
        first += n_slabs * BP
    p_out = p_partial + ((i_slab * KT + kt).to(tl.int64) * (K * K)) * C + o_c
    for tap in tl.static_range(K * K):
        tl.store(p_out + tap * C, tl.sum(b_acc[tap // K][tap % K], 0))


@triton.jit(do_not_specialize=["n_rows", "o_item", "o_channel"])
def sum_rows_kernel(p_rows, p_out, n_rows, o_item, o_channel, C: tl.constexpr, ITEMS: tl.constexpr, BM: tl.constexpr):
    """The sum over rows of [n_rows, ITEMS, C] fp32, in an order that n_rows and BM fix; item and channel of the result
    are o_item and o_channel apart. Program: (item, 8 channels)."""
    pid = tl.program_id(0)
    i_item = pid // (C // 8)
    o_c = (pid % (C // 8)) * 8 + tl.arange(0, 8)
    i_row = tl.arange(0, BM)
    b_sum = tl.zeros((BM, 8), tl.float32)
    first = 0
    while first < n_rows:
        m_row = first + i_row < n_rows
        offsets = (first + i_row).to(tl.int64)[:, None] * (ITEMS * C) + (i_item * C + o_c)[None, :]
        b_sum += tl.load(p_rows + offsets, mask=m_row[:, None], other=0.0)
        first += BM
    tl.store(p_out + i_item * o_item + o_c * o_channel, tl.sum(b_sum, 0))
