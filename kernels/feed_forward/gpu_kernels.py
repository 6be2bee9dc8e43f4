"""The Triton kernels of the feed-forward, forwards.

Maps are matrices of rows (image by image, cell by cell) and channels. `size` is the cells of a map, `n_rows` those of
all. A program takes a tile of BLOCK_M rows, in one of two ways: FLAT ones follow each other without regard to images,
and touch up to SPAN of them; the others end where the image does (SPAN is 1), and their last one is partly empty.

A tile's columns are BLOCK_N and then TAIL more: 64 + 16, 256 + 64 and the like fit the network's widths without waste,
where a power of two would leave up to 3/8 of the tensor cores' work unused, and let one program scale its rows once.

Shapes: BM, BN, BK the three sides of a tile, K and N channels of input and output.
"""
# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

import triton
import triton.language as tl

from unipercept.kernels.gpu_gelu import gelu

NOTHING = tl.constexpr(-1e4)  # before the GELU, in rows that do not exist: 0 after it, whatever the bias


@triton.jit
def _load(pointers, mask, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(pointers, mask=mask, other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def _place(program, tiles_m, TILES_N: tl.constexpr, GROUP: tl.constexpr):
    """Which tile a program takes.

    All column tiles of GROUP row tiles come together, so that these rows are read once.
    """
    in_group = GROUP * TILES_N
    first = (program // in_group) * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    return first + (program % in_group) % height, (program % in_group) // height


@triton.jit
def _rows(tile, size, n_rows, BLOCK_M: tl.constexpr, FLAT: tl.constexpr):
    """The rows of a tile, which of them exist, the image of each, and the first of these images."""
    offset = tl.arange(0, BLOCK_M)
    if FLAT:
        first = (tile * BLOCK_M) // size
        inside = tile * BLOCK_M + offset
        exists = inside < n_rows
        rows = tl.minimum(inside, n_rows - 1)  # rows that do not exist read an existing one: no masks in the loop
    else:
        per_image = tl.cdiv(size, BLOCK_M)
        first = tile // per_image
        inside = (tile % per_image) * BLOCK_M + offset
        exists = inside < size
        rows = first * size + tl.minimum(inside, size - 1)
    return rows.to(tl.int64), exists, rows // size, first


@triton.jit
def _product(
    a, scale, b, rows, images, first, start,
    K: tl.constexpr, N: tl.constexpr, STEP_K: tl.constexpr, STEP_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, TAIL: tl.constexpr, BLOCK_K: tl.constexpr, SPAN: tl.constexpr, SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of `a` times columns of `b` from `start` on, [BM, BN] and [BM, TAIL].

    On the way to the product the rows are multiplied with their image's `scale`, [images, K], if SCALED. `b` has its
    elements STEP_K and STEP_N apart. Without a tail the second result is unused, and not computed.
    """
    TAIL_BLOCK: tl.constexpr = TAIL if TAIL > 0 else 16
    MASK_K: tl.constexpr = K % BLOCK_K != 0
    MASK_N: tl.constexpr = N % (BLOCK_N + TAIL) != 0
    columns = start + tl.arange(0, BLOCK_N)
    tail_columns = start + BLOCK_N + tl.arange(0, TAIL_BLOCK)
    result = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    tail = tl.zeros((BLOCK_M, TAIL_BLOCK), tl.float32)
    for k_start in range(0, K, BLOCK_K):
        k = k_start + tl.arange(0, BLOCK_K)
        left = _load(a + rows[:, None] * K + k[None, :], (k < K)[None, :], MASK_K)  # [BM, BK]
        if SCALED:
            if SPAN == 1:
                left = left * _load(scale + first * K + k, k < K, MASK_K)[None, :]
            else:
                left = left * _load(scale + images[:, None] * K + k[None, :], (k < K)[None, :], MASK_K)
        mask = (k < K)[:, None] & (columns < N)[None, :]
        right = _load(b + k[:, None] * STEP_K + columns[None, :] * STEP_N, mask, MASK_K or MASK_N)  # [BK, BN]
        result = tl.dot(left, right, result, input_precision=PRECISION)
        if TAIL > 0:
            tail_mask = (k < K)[:, None] & (tail_columns < N)[None, :]
            tail_right = _load(b + k[:, None] * STEP_K + tail_columns[None, :] * STEP_N, tail_mask, MASK_K or MASK_N)
            tail = tl.dot(left, tail_right, tail, input_precision=PRECISION)
    return result, tail


@triton.jit
def _store_sums(values, partial, tile, columns, exists, images, first, N: tl.constexpr, SPAN: tl.constexpr):
    """Column sums of a tile, one row of `partial`, [tiles, SPAN, N], for each image that it touches.

    No atomics: the order of the sums, and so their rounding, is the same each time.
    """
    last = tl.max(images, axis=0)
    for slot in tl.static_range(SPAN):
        if first + slot <= last:
            kept = tl.where((exists & (images == first + slot))[:, None], values, 0.0)
            tl.store(partial + (tile * SPAN + slot) * N + columns, tl.sum(kept, axis=0), mask=columns < N)


@triton.jit
def _image_sum(
    partial, image, size, columns,
    N: tl.constexpr, BLOCK_M: tl.constexpr, SPAN: tl.constexpr, FLAT: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """The sum of what `_store_sums` stored for one image, TILES of its tiles at a time."""
    if FLAT:
        begin = (image * size) // BLOCK_M
        end = ((image + 1) * size - 1) // BLOCK_M + 1
    else:
        begin = image * tl.cdiv(size, BLOCK_M)
        end = begin + tl.cdiv(size, BLOCK_M)
    total = tl.zeros((TILES, columns.shape[0]), tl.float32)
    for start in range(begin, end, TILES):
        tiles = start + tl.arange(0, TILES)
        places = tiles * SPAN
        if FLAT:
            places += image - (tiles * BLOCK_M) // size
        mask = (tiles < end)[:, None] & (columns < N)[None, :]
        total += tl.load(partial + places[:, None] * N + columns[None, :], mask=mask, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["size", "splits"])
def channel_sums_kernel(
    y, partial, size, splits, C: tl.constexpr, MOMENTS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Sums over parts of each map: [images, size, C] to [images, splits, C]. One program a part and block of channels.

    With MOMENTS sums and sums of squares, [images, splits, 2, C], of what is left when the first cell of all is taken
    off, which keeps a variance exact where a mean is far from 0.
    """
    image, split = tl.program_id(0), tl.program_id(1)
    channels = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    begin = (size * split) // splits
    end = (size * (split + 1)) // splits
    total = tl.zeros((BLOCK_ROWS, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_ROWS, BLOCK_C), tl.float32)
    base = y + image.to(tl.int64) * size * C
    if MOMENTS:
        origin = tl.load(y + channels, mask=channels < C, other=0.0).to(tl.float32)[None, :]
    for start in tl.range(begin, end, BLOCK_ROWS, num_stages=3):  # else loads wait for each other
        rows = start + tl.arange(0, BLOCK_ROWS)
        mask = (rows < end)[:, None] & (channels < C)[None, :]
        value = tl.load(base + rows[:, None] * C + channels[None, :], mask=mask, other=0.0).to(tl.float32)
        if MOMENTS:
            value = tl.where(mask, value - origin, 0.0)
            squares += value * value
        total += value
    partial += (image * splits + split) * (2 * C if MOMENTS else C) + channels
    tl.store(partial, tl.sum(total, axis=0), mask=channels < C)
    if MOMENTS:
        tl.store(partial + C, tl.sum(squares, axis=0), mask=channels < C)


@triton.jit
def two_sums(values, n_rows, columns, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sums over the rows of [n_rows, 2, C], [BLOCK_C] each."""
    first_sum = tl.zeros((64, BLOCK_C), tl.float32)
    second_sum = tl.zeros((64, BLOCK_C), tl.float32)
    for first in tl.range(0, n_rows, 64, num_stages=3):
        rows = first + tl.arange(0, 64)
        mask = (rows < n_rows)[:, None] & (columns < C)[None, :]
        places = values + rows[:, None] * (2 * C) + columns[None, :]
        first_sum += tl.load(places, mask=mask, other=0.0)
        second_sum += tl.load(places + C, mask=mask, other=0.0)
    return tl.sum(first_sum, axis=0), tl.sum(second_sum, axis=0)


@triton.jit(do_not_specialize=["n_rows", "cells"])
def moments_kernel(y, partial, mean, variance, n_rows, cells, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean and variance of each channel over all cells, from the sums of `channel_sums_kernel`, [n_rows, 2, C]."""
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = channels < C
    total, squares = two_sums(partial, n_rows, channels, C, BLOCK_C)
    off = total / cells
    tl.store(mean + channels, tl.load(y + channels, mask=mask, other=0.0).to(tl.float32) + off, mask=mask)
    tl.store(variance + channels, tl.maximum(squares / cells - off * off, 0.0), mask=mask)


@triton.jit
def norm_of(weight, bias, variance, eps, channels, mask):
    """Factor on the distance from the mean, and shift, of a batch norm."""
    rate = 1.0 / tl.sqrt(tl.load(variance + channels, mask=mask, other=1.0) + eps)
    scale = tl.load(weight + channels, mask=mask, other=0.0).to(tl.float32) * rate
    return scale, tl.load(bias + channels, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["splits"])
def gate_kernel(
    partial, down_w, down_b, up_w, up_b, mean, gate, squeezed_out, part, splits,
    y, norm_weight, norm_bias, norm_mean, norm_variance, centre, eps,
    C: tl.constexpr, R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, SPLITS: tl.constexpr,
    NORMED: tl.constexpr,
):  # fmt: skip
    """Squeeze-excite of one image: [splits, C] sums to the mean and the gate, [C] each, and what is between, [R].
    `part` is 1 / size.

    If NORMED the map passes a batch norm first. The sums are [splits, 2, C] then, as `channel_sums_kernel` leaves them,
    and `centre`, [C], is the mean of the image less that of the batch.
    """
    image = tl.program_id(0)
    r = tl.arange(0, BLOCK_R)
    products = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)  # summed over once, at the end: a sum across threads waits
    STEP: tl.constexpr = 2 * C if NORMED else C
    for start in tl.range(0, C, BLOCK_C, num_stages=3):
        c = start + tl.arange(0, BLOCK_C)
        split = tl.arange(0, SPLITS)
        mask = (split < splits)[:, None] & (c < C)[None, :]
        sums = tl.load(partial + (image * splits + split)[:, None] * STEP + c[None, :], mask=mask, other=0.0)
        average = tl.sum(sums, axis=0) * part
        if NORMED:
            origin = tl.load(y + c, mask=c < C, other=0.0).to(tl.float32)
            off = average + (origin - tl.load(norm_mean + c, mask=c < C, other=0.0))
            scale, shift = norm_of(norm_weight, norm_bias, norm_variance, eps, c, c < C)
            tl.store(centre + image * C + c, off, mask=c < C)
            average = off * scale + shift
        tl.store(mean + image * C + c, average, mask=c < C)
        mask = (r < R)[:, None] & (c < C)[None, :]
        weight = tl.load(down_w + r[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)  # [R, C]
        products += weight * average[None, :]
    squeezed = tl.sum(products, axis=1) + tl.load(down_b + r, mask=r < R, other=0.0).to(tl.float32)
    squeezed = tl.maximum(squeezed, 0.0)
    tl.store(squeezed_out + image * R + r, squeezed, mask=r < R)
    for start in tl.range(0, C, BLOCK_C, num_stages=3):
        c = start + tl.arange(0, BLOCK_C)
        mask = (c < C)[:, None] & (r < R)[None, :]
        weight = tl.load(up_w + c[:, None] * R + r[None, :], mask=mask, other=0.0).to(tl.float32)  # [C, R]
        excited = tl.sum(weight * squeezed[None, :], axis=1) + tl.load(up_b + c, mask=c < C, other=0.0).to(tl.float32)
        tl.store(gate + image * C + c, tl.sigmoid(excited).to(gate.dtype.element_ty), mask=c < C)


@triton.jit
def _expand_columns(
    result, columns, bias, hidden, partial, tile, rows, exists, images, first,
    N: tl.constexpr, SPAN: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    mask = columns < N
    active = gelu(result + tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)[None, :], EXACT)
    places = hidden + rows[:, None] * N + columns[None, :]
    tl.store(places, active.to(hidden.dtype.element_ty), mask=exists[:, None] & mask[None, :])
    _store_sums(active * active, partial, tile, columns, exists, images, first, N, SPAN)


@triton.jit(do_not_specialize=["size", "n_rows", "tiles_m"])
def expand_kernel(
    y, gate, weight, bias, hidden, partial, size, n_rows, tiles_m,
    K: tl.constexpr, N: tl.constexpr, SCALE_WEIGHTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TAIL: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    SPAN: tl.constexpr, FLAT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """hidden = gelu((y * gate) @ weight^T + bias), and the sums of its squares.

    With SCALE_WEIGHTS there is a `weight` for each image, [images, N, K], that holds the gate already.
    """
    tile, column_tile = _place(tl.program_id(0), tiles_m, tl.cdiv(N, BLOCK_N + TAIL), GROUP)
    rows, exists, images, first = _rows(tile, size, n_rows, BLOCK_M, FLAT)
    start = column_tile * (BLOCK_N + TAIL)
    if SCALE_WEIGHTS:
        weight += first.to(tl.int64) * (N * K)
    result, tail = _product(
        y, gate, weight, rows, images, first, start,
        K, N, 1, K, BLOCK_M, BLOCK_N, TAIL, BLOCK_K, SPAN, not SCALE_WEIGHTS, PRECISION,
    )  # fmt: skip
    EXACT: tl.constexpr = PRECISION == "ieee"
    columns = start + tl.arange(0, BLOCK_N)
    _expand_columns(result, columns, bias, hidden, partial, tile, rows, exists, images, first, N, SPAN, EXACT)
    if TAIL > 0:
        columns = start + BLOCK_N + tl.arange(0, TAIL)
        _expand_columns(tail, columns, bias, hidden, partial, tile, rows, exists, images, first, N, SPAN, EXACT)


@triton.jit(do_not_specialize=["size", "cells"])
def scale_kernel(
    y, gate, output, size, cells, norm_weight, norm_bias, norm_mean, norm_variance, eps,
    C: tl.constexpr, NORMED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """[cells, C], or if NORMED its batch norm, times the gate of each cell's image, [images, C]."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channels = tl.arange(0, BLOCK_C)
    mask = (rows < cells)[:, None] & (channels < C)[None, :]
    places = rows.to(tl.int64)[:, None] * C + channels[None, :]
    value = tl.load(y + places, mask=mask, other=0.0).to(tl.float32)
    if NORMED:
        scale, shift = norm_of(norm_weight, norm_bias, norm_variance, eps, channels, channels < C)
        mean = tl.load(norm_mean + channels, mask=channels < C, other=0.0)
        value = (value - mean[None, :]) * scale[None, :] + shift[None, :]
    factor = tl.load(gate + (rows // size)[:, None] * C + channels[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(output + places, (value * factor).to(output.dtype.element_ty), mask=mask)


@triton.jit
def cells_of(size, N: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, LAST_FIRST: tl.constexpr = False):
    """Of the programs that pass over [images, size, N] by parts of ROWS rows: columns, which exist,
    image, and the first element.

    What was just written is still in the cache in its last part: LAST_FIRST begins there, and the
    next pass where this one ends.
    """
    image = tl.program_id(2)
    if LAST_FIRST:
        image = tl.num_programs(2) - 1 - image
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    return columns, columns < N, image, image.to(tl.int64) * size * N


@triton.jit
def turn(start, size, base, columns, exist, N: tl.constexpr, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """The elements of a program's rows from `start` on, and which of them exist.

    Passes load them a turn ahead: a load waits for the stores before it, which could have changed what it reads.
    """
    rows = tl.program_id(0) * ROWS + start + tl.arange(0, BLOCK_ROWS)
    return base + rows[:, None] * N + columns[None, :], (rows < size)[:, None] & exist[None, :]


@triton.jit(do_not_specialize=["size"])
def activate_kernel(
    hidden, bias, active, partial, size, N: tl.constexpr, STORE: tl.constexpr, EXACT: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The sums of squares of gelu(hidden + bias) over ROWS rows of an image, [images, tiles, N]; with STORE the GELU,
    which may take the place of `hidden`.

    The last image comes first: its values, just written, are still in the cache.
    """
    part, image = tl.program_id(0), tl.num_programs(2) - 1 - tl.program_id(2)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    base = image.to(tl.int64) * size * N
    biases = tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((BLOCK_ROWS, BLOCK_N), tl.float32)
    next_places, next_mask = turn(0, size, base, columns, columns < N, N, ROWS, BLOCK_ROWS)
    next_hidden = tl.load(hidden + next_places, mask=next_mask, other=NOTHING)
    for start in tl.static_range(0, ROWS, BLOCK_ROWS):
        places, mask, before = next_places, next_mask, next_hidden
        if start + BLOCK_ROWS < ROWS:
            next_places, next_mask = turn(start + BLOCK_ROWS, size, base, columns, columns < N, N, ROWS, BLOCK_ROWS)
            next_hidden = tl.load(hidden + next_places, mask=next_mask, other=NOTHING)
        result = gelu(before.to(tl.float32) + biases, EXACT)
        if STORE:
            tl.store(active + places, result.to(active.dtype.element_ty), mask=mask)
        total += result * result
    tile = image * tl.num_programs(0) + part
    tl.store(partial + tile * N + columns, tl.sum(total, axis=0), mask=columns < N)


@triton.jit(do_not_specialize=["size"])
def factor_kernel(
    partial, gamma, factor, norm, size, eps,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SPAN: tl.constexpr, FLAT: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """One image's sums of squares to its norms and to GRN's factor gamma * norm / (mean norm + eps) + 1, [N] each."""
    image = tl.program_id(0)
    columns = tl.arange(0, BLOCK_N)
    norms = tl.sqrt(_image_sum(partial, image, size, columns, N, BLOCK_M, SPAN, FLAT, TILES))
    response = norms / (tl.sum(norms, axis=0) / N + eps)
    factors = tl.load(gamma + columns, mask=columns < N, other=0.0).to(tl.float32) * response + 1.0
    tl.store(norm + image * N + columns, norms, mask=columns < N)
    tl.store(factor + image * N + columns, factors.to(factor.dtype.element_ty), mask=columns < N)


@triton.jit(do_not_specialize=["size"])
def grown_kernel(
    hidden, bias, factor, beta, grown, size,
    N: tl.constexpr, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_N: tl.constexpr, EXACT: tl.constexpr,
    HAS_BETA: tl.constexpr,
):  # fmt: skip
    """grown = gelu(hidden + bias) * factor + beta, what the second layer sees."""
    columns, exist, image, base = cells_of(size, N, ROWS, BLOCK_N)
    factors = tl.load(factor + image * N + columns, mask=exist, other=0.0).to(tl.float32)[None, :]
    biases = tl.load(bias + columns, mask=exist, other=0.0).to(tl.float32)[None, :]
    betas = tl.zeros((1, BLOCK_N), tl.float32)
    if HAS_BETA:
        betas += tl.load(beta + columns, mask=exist, other=0.0).to(tl.float32)[None, :]
    next_places, next_mask = turn(0, size, base, columns, exist, N, ROWS, BLOCK_ROWS)
    next_hidden = tl.load(hidden + next_places, mask=next_mask, other=0.0)
    for start in tl.static_range(0, ROWS, BLOCK_ROWS):
        places, mask, before = next_places, next_mask, next_hidden
        if start + BLOCK_ROWS < ROWS:
            next_places, next_mask = turn(start + BLOCK_ROWS, size, base, columns, exist, N, ROWS, BLOCK_ROWS)
            next_hidden = tl.load(hidden + next_places, mask=next_mask, other=0.0)
        result = gelu(before.to(tl.float32) + biases, EXACT) * factors + betas
        tl.store(grown + places, result.to(grown.dtype.element_ty), mask=mask)


@triton.jit
def passed_kernel(weight, beta, bias, output, C: tl.constexpr, N: tl.constexpr, HAS_BIAS: tl.constexpr):
    """weight @ beta + bias in float32, [C], of [C, N] and [N]."""
    rows = tl.program_id(0) * 4 + tl.arange(0, 4)
    total = tl.zeros((4, 512), tl.float32)
    for start in tl.static_range(0, N, 512):
        columns = start + tl.arange(0, 512)
        mask = (rows < C)[:, None] & (columns < N)[None, :]
        part = tl.load(weight + rows[:, None] * N + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        total += part * tl.load(beta + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    result = tl.sum(total, axis=1)
    if HAS_BIAS:
        result += tl.load(bias + rows, mask=rows < C, other=0.0).to(tl.float32)
    tl.store(output + rows, result, mask=rows < C)


@triton.jit
def _contract_columns(
    result, columns, bias, residual, output, rows, exists,
    N: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    mask = columns < N
    places = rows[:, None] * N + columns[None, :]
    both = exists[:, None] & mask[None, :]
    if HAS_BIAS:
        result += tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        result += tl.load(residual + places, mask=both, other=0.0).to(tl.float32)
    tl.store(output + places, result.to(output.dtype.element_ty), mask=both)


@triton.jit(do_not_specialize=["size", "n_rows", "tiles_m"])
def contract_kernel(
    hidden, factor, weight, bias, residual, output, size, n_rows, tiles_m,
    K: tl.constexpr, N: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    SCALE_WEIGHTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP: tl.constexpr, SPAN: tl.constexpr, FLAT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """output = residual + (hidden * factor) @ weight^T + bias. See expand_kernel."""
    tile, column_tile = _place(tl.program_id(0), tiles_m, tl.cdiv(N, BLOCK_N + TAIL), GROUP)
    rows, exists, images, first = _rows(tile, size, n_rows, BLOCK_M, FLAT)
    start = column_tile * (BLOCK_N + TAIL)
    if SCALE_WEIGHTS:
        weight += first.to(tl.int64) * (N * K)
    result, tail = _product(
        hidden, factor, weight, rows, images, first, start,
        K, N, 1, K, BLOCK_M, BLOCK_N, TAIL, BLOCK_K, SPAN, not SCALE_WEIGHTS, PRECISION,
    )  # fmt: skip
    columns = start + tl.arange(0, BLOCK_N)
    _contract_columns(result, columns, bias, residual, output, rows, exists, N, HAS_BIAS, HAS_RESIDUAL)
    if TAIL > 0:
        columns = start + BLOCK_N + tl.arange(0, TAIL)
        _contract_columns(tail, columns, bias, residual, output, rows, exists, N, HAS_BIAS, HAS_RESIDUAL)
