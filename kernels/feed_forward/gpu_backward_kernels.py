"""The Triton kernels of the feed-forward, backwards.

Maps are matrices of rows (image by image, cell by cell) and channels. `size` is the cells of a map. Sums over parts of
a map or of the batch go through buffers: no atomics.

Shapes: C channels, R squeezed channels, N channels of the map that is passed over.
"""
# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

import triton
import triton.language as tl

from unipercept.kernels.feed_forward.gpu_kernels import NOTHING, cells_of, norm_of, turn, two_sums
from unipercept.kernels.gpu_gelu import gelu, gelu_and_slope


@triton.jit
def _pair(hidden, grad, places, mask):
    return tl.load(hidden + places, mask=mask, other=NOTHING), tl.load(grad + places, mask=mask, other=0.0)


@triton.jit(do_not_specialize=["size"])
def sums_of_products_kernel(
    hidden, bias, grad, partial, size,
    N: tl.constexpr, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_N: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The sums of gelu(hidden + bias) * grad, [parts, images, N]."""
    columns, exist, image, base = cells_of(size, N, ROWS, BLOCK_N, LAST_FIRST=True)
    biases = tl.load(bias + columns, mask=exist, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((BLOCK_ROWS, BLOCK_N), tl.float32)
    for start in tl.static_range(0, ROWS, BLOCK_ROWS):
        places, mask = turn(start, size, base, columns, exist, N, ROWS, BLOCK_ROWS)
        before, pushed = _pair(hidden, grad, places, mask)
        total += gelu(before.to(tl.float32) + biases, EXACT) * pushed.to(tl.float32)
    part = tl.program_id(0) * tl.num_programs(2) + image
    tl.store(partial + part * N + columns, tl.sum(total, axis=0), mask=exist)


@triton.jit
def scaled_weight_kernel(weight, factor, output, C: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """weight[c, n] * factor[image, n], [images, C, N]; a program makes 16 rows."""
    image = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(2) * 16 + tl.arange(0, 16)
    mask = (c < C)[:, None] & (columns < N)[None, :]
    places = c[:, None] * N + columns[None, :]
    value = tl.load(weight + places, mask=mask, other=0.0).to(tl.float32)
    value *= tl.load(factor + image * N + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    tl.store(output + image.to(tl.int64) * (C * N) + places, value.to(output.dtype.element_ty), mask=mask)


@triton.jit
def factor_gradient_kernel(products, weight, grad_factor, C: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """Sums over c of weight[c, n] * products[image, c, n], [images, N]."""
    image = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((16, BLOCK_N), tl.float32)
    for start in tl.range(0, C, 16, num_stages=3):
        c = start + tl.arange(0, 16)
        mask = (c < C)[:, None] & (columns < N)[None, :]
        places = c[:, None] * N + columns[None, :]
        product = tl.load(products + image.to(tl.int64) * (C * N) + places, mask=mask, other=0.0)
        total += product * tl.load(weight + places, mask=mask, other=0.0).to(tl.float32)
    tl.store(grad_factor + image * N + columns, tl.sum(total, axis=0), mask=columns < N)


@triton.jit(do_not_specialize=["batch"])
def weight_gradient_kernel(
    products, factor, grad_sum, beta, output, batch,
    C: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr, HAS_BETA: tl.constexpr,
):  # fmt: skip
    """Sums over the images of factor[image, n] * products[image, c, n], and grad_sum[c] * beta[n]: [C, N]."""
    c = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((16, BLOCK_N), tl.float32)
    for start in tl.range(0, batch, 16, num_stages=3):
        images = start + tl.arange(0, 16)
        mask = (images < batch)[:, None] & (columns < N)[None, :]
        product = tl.load(
            products + images.to(tl.int64)[:, None] * (C * N) + c * N + columns[None, :], mask=mask, other=0.0
        )
        total += product * tl.load(factor + images[:, None] * N + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    result = tl.sum(total, axis=0)
    if HAS_BETA:
        result += tl.load(grad_sum + c) * tl.load(beta + columns, mask=columns < N, other=0.0).to(tl.float32)
    tl.store(output + c * N + columns, result, mask=columns < N)


@triton.jit(do_not_specialize=["batch", "parts"])
def response_backward_kernel(
    partial, norm, gamma, pull, grad_gamma, batch, parts, eps, N: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Through the statistics of GRN, for one image; the formula is in reference.py.

    [parts, images, N], whose sum is the gradient of the factor, to `pull` and the image's share of gamma's gradient.
    """
    image = tl.program_id(0)
    columns = tl.arange(0, BLOCK_N)
    mask = columns < N
    product = tl.zeros((BLOCK_N,), tl.float32)
    for part in range(parts):
        product += tl.load(partial + (part * batch + image) * N + columns, mask=mask, other=0.0)
    norms = tl.load(norm + image * N + columns, mask=mask, other=0.0)
    scale = tl.sum(norms, axis=0) / N + eps
    grad_response = product * tl.load(gamma + columns, mask=mask, other=0.0).to(tl.float32)
    shared = tl.sum(grad_response * norms, axis=0) / N / scale
    some = norms > 0
    pulls = tl.where(some, (grad_response - shared) / scale / tl.where(some, norms, 1.0), 0.0)
    tl.store(pull + image * N + columns, pulls, mask=mask)
    tl.store(grad_gamma + image * N + columns, product * norms / scale, mask=mask)


@triton.jit(do_not_specialize=["size"])
def hidden_gradient_kernel(
    hidden, bias, grad, factor, pull, partial, size,
    N: tl.constexpr, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_N: tl.constexpr, EXACT: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    """grad = (grad * factor + gelu(h) * pull) * gelu'(h) in its place, h = hidden + bias, and its sums, [parts, images,
    N]. If SCALED the factor is in `grad` already.
    """
    columns, exist, image, base = cells_of(size, N, ROWS, BLOCK_N)
    factors = tl.load(factor + image * N + columns, mask=exist, other=0.0).to(tl.float32)[None, :]
    pulls = tl.load(pull + image * N + columns, mask=exist, other=0.0)[None, :]
    biases = tl.load(bias + columns, mask=exist, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((BLOCK_ROWS, BLOCK_N), tl.float32)
    next_places, next_mask = turn(0, size, base, columns, exist, N, ROWS, BLOCK_ROWS)
    next_hidden, next_grad = _pair(hidden, grad, next_places, next_mask)
    for start in tl.static_range(0, ROWS, BLOCK_ROWS):
        places, mask, before, pushed = next_places, next_mask, next_hidden, next_grad
        if start + BLOCK_ROWS < ROWS:
            next_places, next_mask = turn(start + BLOCK_ROWS, size, base, columns, exist, N, ROWS, BLOCK_ROWS)
            next_hidden, next_grad = _pair(hidden, grad, next_places, next_mask)
        active, slope = gelu_and_slope(before.to(tl.float32) + biases, EXACT)
        result = pushed.to(tl.float32)
        if not SCALED:
            result = result * factors
        result = (result + active * pulls) * slope  # 0 in rows beyond the map, where grad, GELU and slope are
        tl.store(grad + places, result.to(grad.dtype.element_ty), mask=mask)
        total += result
    part = tl.program_id(0) * tl.num_programs(2) + image
    tl.store(partial + part * N + columns, tl.sum(total, axis=0), mask=exist)


@triton.jit(do_not_specialize=["size"])
def gate_gradient_kernel(
    grad, y, mean, partial, size,
    N: tl.constexpr, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_N: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """The sums of grad * y over parts of each map, [parts, images, N]; if NORMED those of grad * (y - mean) and of
    grad, [parts, images, 2, N].
    """
    columns, exist, image, base = cells_of(size, N, ROWS, BLOCK_N)
    along = tl.zeros((BLOCK_ROWS, BLOCK_N), tl.float32)
    pushed = tl.zeros((BLOCK_ROWS, BLOCK_N), tl.float32)
    means = tl.zeros((1, BLOCK_N), tl.float32)
    if NORMED:
        means += tl.load(mean + columns, mask=exist, other=0.0)[None, :]
    for start in tl.static_range(0, ROWS, BLOCK_ROWS):
        rows = tl.program_id(0) * ROWS + start + tl.arange(0, BLOCK_ROWS)
        mask = (rows < size)[:, None] & exist[None, :]
        places = base + rows[:, None] * N + columns[None, :]
        left = tl.load(grad + places, mask=mask, other=0.0).to(tl.float32)
        along += left * (tl.load(y + places, mask=mask, other=0.0).to(tl.float32) - means)
        if NORMED:
            pushed += left
    partial += (tl.program_id(0) * tl.num_programs(2) + image) * (2 * N if NORMED else N) + columns
    tl.store(partial, tl.sum(along, axis=0), mask=exist)
    if NORMED:
        tl.store(partial + N, tl.sum(pushed, axis=0), mask=exist)


@triton.jit
def _gate_share(
    partial, image, batch, parts, c, norm_weight, norm_bias, norm_variance, eps,
    C: tl.constexpr, PARTS: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """The sum of what `gate_gradient_kernel` stored for one image; and the gradient of the gate that it makes, [C]."""
    each = tl.arange(0, PARTS)
    mask = (each < parts)[:, None] & (c < C)[None, :]
    places = partial + (each * batch + image)[:, None] * (2 * C if NORMED else C) + c[None, :]
    along = tl.sum(tl.load(places, mask=mask, other=0.0), axis=0)
    pushed, grad = along, along
    if NORMED:
        pushed = tl.sum(tl.load(places + C, mask=mask, other=0.0), axis=0)
        scale, shift = norm_of(norm_weight, norm_bias, norm_variance, eps, c, c < C)
        grad = along * scale + pushed * shift
    return along, pushed, grad


@triton.jit(do_not_specialize=["batch", "parts"])
def gate_backward_kernel(
    partial, gate, squeezed, down_w, up_w, shift, grad_up, grad_down, batch, parts, size,
    norm_weight, norm_bias, norm_variance, centre, norm_sums, eps,
    C: tl.constexpr, R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, PARTS: tl.constexpr,
    NORMED: tl.constexpr,
):  # fmt: skip
    """Squeeze-excite of one image backwards.

    [parts, images, C], whose sum is the gradient of the gate, to those before the sigmoid, [C], and before the
    rectifier, [R], and to `shift`, [C], what each cell of the input gets through the mean.

    If NORMED the parts are [parts, images, 2, C], see `gate_gradient_kernel`, and `norm_sums`, [images, 2, C], are what
    the gradients of the batch norm are made of: the sums over the image of its output's gradient, and of that times the
    distance of its input from the mean.
    """
    image = tl.program_id(0)
    r = tl.arange(0, BLOCK_R)
    products = tl.zeros((BLOCK_C, BLOCK_R), tl.float32)
    for start in tl.range(0, C, BLOCK_C, num_stages=3):
        c = start + tl.arange(0, BLOCK_C)
        _, _, grad = _gate_share(
            partial, image, batch, parts, c, norm_weight, norm_bias, norm_variance, eps, C, PARTS, NORMED
        )
        gates = tl.load(gate + image * C + c, mask=c < C, other=0.0).to(tl.float32)
        grad = grad * gates * (1.0 - gates)
        tl.store(grad_up + image * C + c, grad, mask=c < C)
        mask = (c < C)[:, None] & (r < R)[None, :]
        weight = tl.load(up_w + c[:, None] * R + r[None, :], mask=mask, other=0.0).to(tl.float32)  # [C, R]
        products += weight * grad[:, None]
    back = tl.where(tl.load(squeezed + image * R + r, mask=r < R, other=0.0) > 0, tl.sum(products, axis=0), 0.0)
    tl.store(grad_down + image * R + r, back, mask=r < R)
    for start in tl.range(0, C, BLOCK_C, num_stages=3):
        c = start + tl.arange(0, BLOCK_C)
        mask = (r < R)[:, None] & (c < C)[None, :]
        weight = tl.load(down_w + r[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)  # [R, C]
        through = tl.sum(weight * back[:, None], axis=0)
        tl.store(shift + image * C + c, through / size, mask=c < C)
        if NORMED:
            along, pushed, _ = _gate_share(
                partial, image, batch, parts, c, norm_weight, norm_bias, norm_variance, eps, C, PARTS, NORMED
            )
            gates = tl.load(gate + image * C + c, mask=c < C, other=0.0).to(tl.float32)
            off = tl.load(centre + image * C + c, mask=c < C, other=0.0)
            places = norm_sums + image * (2 * C) + c
            tl.store(places, pushed * gates + through, mask=c < C)
            tl.store(places + C, along * gates + through * off, mask=c < C)


@triton.jit(do_not_specialize=["batch"])
def squeeze_gradients_kernel(
    grad_down, mean, grad_up, squeezed, down_w, down_b, up_w, up_b, batch,
    C: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of squeeze-excite's parameters: [batch, R] and [batch, C] before and after the rectifier and the
    sigmoid to grad_down^T mean, [R, C], grad_up^T squeezed, [C, R], and the sums over the batch for the biases.
    """
    left, right, weight, bias, height, width = grad_down, mean, down_w, down_b, R, C
    if tl.program_id(1) == 1:
        left, right, weight, bias, height, width = grad_up, squeezed, up_w, up_b, C, R
    across = tl.cdiv(width, BLOCK)
    rows = tl.program_id(0) // across * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    products = tl.zeros((BLOCK, BLOCK), tl.float32)
    sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, batch, BLOCK):
        images = start + tl.arange(0, BLOCK)
        exist = (images < batch)[:, None]
        one = tl.load(left + images[:, None] * height + rows[None, :], mask=exist & (rows < height)[None, :], other=0.0)
        other = tl.load(
            right + images[:, None] * width + columns[None, :], mask=exist & (columns < width)[None, :], other=0.0
        )
        products = tl.dot(tl.trans(one), other, products, input_precision="ieee")
        sums += one
    mask = (rows < height)[:, None] & (columns < width)[None, :]
    tl.store(weight + rows[:, None] * width + columns[None, :], products, mask=mask)
    if tl.program_id(0) % across == 0:
        tl.store(bias + rows, tl.sum(sums, axis=0), mask=rows < height)


@triton.jit(do_not_specialize=["batch"])
def norm_backward_kernel(
    norm_sums, weight, variance, grad_weight, grad_bias, slope, pull, rest, batch, cells, eps,
    C: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """[batch, 2, C] of `gate_backward_kernel` to the gradients of the batch norm's parameters; and of its input,
    slope * g + pull * (x - mean) + rest, [C] each."""
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = channels < C
    pushed, along = two_sums(norm_sums, batch, channels, C, BLOCK_C)
    rate = 1.0 / tl.sqrt(tl.load(variance + channels, mask=mask, other=1.0) + eps)
    slopes = tl.load(weight + channels, mask=mask, other=0.0).to(tl.float32) * rate
    tl.store(grad_weight + channels, along * rate, mask=mask)
    tl.store(grad_bias + channels, pushed, mask=mask)
    tl.store(slope + channels, slopes, mask=mask)
    tl.store(pull + channels, -slopes * rate * rate * along / cells, mask=mask)
    tl.store(rest + channels, -slopes * pushed / cells, mask=mask)


@triton.jit(do_not_specialize=["size"])
def input_gradient_kernel(
    grad, y, gate, shift, slope, pull, rest, mean, size,
    N: tl.constexpr, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_N: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """grad = grad * gate + shift in its place, the last two [images, N]; if NORMED that passes the batch norm, see
    `norm_backward_kernel`."""
    columns, exist, image, base = cells_of(size, N, ROWS, BLOCK_N)
    gates = tl.load(gate + image * N + columns, mask=exist, other=0.0).to(tl.float32)[None, :]
    shifts = tl.load(shift + image * N + columns, mask=exist, other=0.0)[None, :]
    pulls = tl.zeros((1, BLOCK_N), tl.float32)
    if NORMED:
        slopes = tl.load(slope + columns, mask=exist, other=0.0)[None, :]
        pulls += tl.load(pull + columns, mask=exist, other=0.0)[None, :]
        rests = tl.load(rest + columns, mask=exist, other=0.0)[None, :]
        means = tl.load(mean + columns, mask=exist, other=0.0)[None, :]
        gates, shifts = gates * slopes, shifts * slopes + rests
    for start in tl.static_range(0, ROWS, BLOCK_ROWS):
        rows = tl.program_id(0) * ROWS + start + tl.arange(0, BLOCK_ROWS)
        mask = (rows < size)[:, None] & exist[None, :]
        places = base + rows[:, None] * N + columns[None, :]
        result = tl.load(grad + places, mask=mask, other=0.0).to(tl.float32) * gates + shifts
        if NORMED:
            result += (tl.load(y + places, mask=mask, other=0.0).to(tl.float32) - means) * pulls
        tl.store(grad + places, result.to(grad.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_rows"])
def column_sums_kernel(x, output, n_rows, N: tl.constexpr):
    """Sums over the rows of [n_rows, N]."""
    columns = tl.program_id(0) * 32 + tl.arange(0, 32)
    total = tl.zeros((128, 32), tl.float32)
    for first in tl.range(0, n_rows, 128, num_stages=3):
        rows = first + tl.arange(0, 128)
        mask = (rows < n_rows)[:, None] & (columns < N)[None, :]
        total += tl.load(x + rows[:, None] * N + columns[None, :], mask=mask, other=0.0)
    tl.store(output + columns, tl.sum(total, axis=0), mask=columns < N)
