"""The emulated device: each helper against numpy or torch, and each mistake it is there to find."""

import numpy as np
import pytest
import torch

from tests.kernels import emulation

pytestmark = emulation.emulated

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def run(parameters, body, args, *, grid=(1,), block=32, shared=0, before="", **options):
    """One kernel named `k`. Its body starts on line 4."""
    source = f"""extern __shared__ unsigned char smem[];
{before}
extern "C" __global__ void __launch_bounds__({block}) k({parameters}) {{ const int t = threadIdx.x;
{body}
}}"""
    emulation.emulate(source, "k", grid, block, shared, args, **options)


def randn(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def int32(*shape):
    return torch.zeros(*shape, dtype=torch.int32)


# ---- Threads, arguments, conversions


@pytest.mark.parametrize("sanitize", [False, True])
def test_threads_blocks_and_arguments(sanitize):
    out = torch.zeros(2, 3, 4, 64)
    run(
        "float* out, i64 large, int small, float scale, const float* null, const float* element",
        """int b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        out[b * blockDim.x + t] = (large == -5000000000ll) + scale * (b * 100 + t) + small + (null == 0) + __ldg(element);""",
        [out, -5_000_000_000, (-7, "int"), 0.5, None, torch.arange(5.0)[3:]],
        grid=(4, 3, 2),
        block=64,
        sanitize=sanitize,
    )
    expected = torch.arange(24)[:, None] * 100 + torch.arange(64)
    assert torch.equal(out.view(24, 64), 1 + 0.5 * expected - 7 + 1 + 3)


def test_defines_and_errors_of_the_caller():
    out = int32(32)
    run("int* out", "out[t] = SIZE * NAME(t);", [out], defines={"SIZE": 3, "NAME(x)": "(x + 1)"})
    assert out.tolist() == [3 * (i + 1) for i in range(32)]
    with pytest.raises(RuntimeError, match="argument 1: the kernel takes 'i', given 'q'"):
        run("int* out, int n", "", [out, 3])
    with pytest.raises(RuntimeError, match="takes 1 arguments, given 2"):
        run("int* out", "", [out, 3])
    with pytest.raises(RuntimeError, match=r"kernel.cu:4:.* 'missing' was not declared"):
        run("int* out", "out[t] = missing;", [out])
    with pytest.raises(ValueError, match="multiple of 32"):
        run("", "", [], block=40)
    with pytest.raises(ValueError, match="no other shared variables"):
        run("", "__shared__ int other[3];", [])


def test_tensors_that_overlap_still_alias():
    both = torch.arange(64, dtype=torch.int32)
    run("int* whole, const int* part", "whole[32 + t] = 7; whole[t] = part[t];", [both, both[32:]])
    assert both.tolist() == [7] * 64


@pytest.mark.parametrize("name", DTYPES)
def test_conversions_match_torch(name):
    dtype = DTYPES[name]
    halves = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    out = torch.zeros(65536)
    run(
        f"const {name}* x, float* out",
        "int i = blockIdx.x * 256 + t; out[i] = to_float(x[i]);",
        [halves, out],
        grid=(256,),
        block=256,
    )
    exact = halves.view(dtype).float()
    assert torch.equal(out.nan_to_num(12345.0), exact.nan_to_num(12345.0))

    # Every half, its neighbours among the floats, and the ties between it and the next, with their neighbours.
    ties = 1 << (15 if name == "bf16" else 12)
    bits = np.concatenate(
        [exact.numpy().view(np.uint32) + np.uint32(d) for d in (0, 1, 2**32 - 1, ties - 1, ties, ties + 1)]
    )
    floats = torch.from_numpy(bits.view(np.float32)).nan_to_num(1.0)
    assert len(floats) % 256 == 0
    single, pair = torch.zeros(len(floats), dtype=dtype), torch.zeros(len(floats), dtype=torch.int32)
    lo, hi = torch.zeros(len(floats)), torch.zeros(len(floats))
    run(
        f"const float* x, {name}* single, u32* pair, float* lo, float* hi",
        f"""int i = blockIdx.x * 256 + t;
        single[i] = from_float<{name}>(x[i]);
        pair[i] = pack2<{name}>(x[i], -1.0f);
        lo[i] = lo_float<{name}>(pair[i]);
        hi[i] = hi_float<{name}>(pair[i]) + to_float(from_float<float>(1.5f));""",
        [floats, single, pair, lo, hi],
        grid=(len(floats) // 256,),
        block=256,
    )
    assert torch.equal(single.view(torch.int16), floats.to(dtype).view(torch.int16))
    assert torch.equal(lo, floats.to(dtype).float())
    assert torch.equal(pair.view(dtype)[1::2].float(), torch.full((len(floats),), -1.0))
    assert torch.equal(hi, torch.full((len(floats),), 0.5))


def test_prmt_selects_bytes_and_repeats_signs():
    rng = np.random.default_rng(0)
    a, b, selector = (rng.integers(0, 2**32, 320, dtype=np.uint32) for _ in range(3))
    out = int32(320)
    inputs = [torch.from_numpy(x.view(np.int32)) for x in (a, b, selector)]
    run(
        "const u32* a, const u32* b, const u32* s, u32* out",
        "int i = blockIdx.x * 32 + t; out[i] = prmt(a[i], b[i], s[i]);",
        [*inputs, out],
        grid=(10,),
    )
    source = np.concatenate([a[:, None].view(np.uint8), b[:, None].view(np.uint8)], axis=1)
    expected = np.zeros((320, 4), np.uint8)
    for i in range(4):
        nibble = selector >> np.uint32(4 * i) & np.uint32(15)
        byte = source[np.arange(320), nibble & 7]
        expected[:, i] = np.where(nibble & 8, np.where(byte & 128, 255, 0), byte)
    assert np.array_equal(out.numpy().view(np.uint8).reshape(320, 4), expected)


def test_numbers_and_atomics():
    out, counts = torch.zeros(8), int32(3)
    total = torch.zeros(1)
    run(
        "float* out, u32* counts, float* total",
        """atomicAdd(&counts[0], 2u); atomicAdd((int*)&counts[1], -1); atomicInc(&counts[2], 9); atomicAdd(total, 0.5f);
        __threadfence();
        if (t) return;
        float nan = __uint_as_float(0x7fc00000u);
        out[0] = min(3, 2), out[1] = max(3u, 2u), out[2] = max(nan, 1.0f), out[3] = min(1.5f, -2.0f);
        out[4] = rsqrtf(4.0f), out[5] = fmaf(2.0f, 3.0f, 1.0f), out[6] = __float_as_uint(1.0f) == 0x3f800000u;
        float4 v = make_float4(1, 2, 3, 4);
        out[7] = v.w + make_float2(1, 2).y + make_uint2(3, 4).x + make_uint4(5, 6, 7, 8).z;""",
        [out, counts, total],
        block=96,
    )
    assert out.tolist() == [2, 3, 1, -2, 0.5, 7, 1, 4 + 2 + 3 + 7]
    assert counts.tolist() == [192, -96, 96 % 10]
    assert total.item() == 48


# ---- Barriers and collectives


@pytest.mark.parametrize("sanitize", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_syncthreads_and_shuffles(sanitize, reverse):
    x, out = randn(4, 512), torch.zeros(4)
    run(
        "const float* x, float* out",
        """float* part = (float*)smem;
        float v = x[blockIdx.x * 512 + t];
        for (int d = 16; d >= 4; d /= 2) v += shfl_xor(v, d);
        v += __uint_as_float(shfl_xor(__float_as_uint(v), 2));
        v += shfl_xor(v, 1);
        if (t % 32 == 0) part[t / 32] = v;
        __syncthreads();
        if (t < 32) {
            v = t < 16 ? part[t] : 0.0f;
            for (int d = 16; d; d /= 2) v += shfl_down(v, d);
            if (t == 0) out[blockIdx.x] = v;
        }""",
        [x, out],
        grid=(4,),
        block=512,
        shared=64,
        sanitize=sanitize,
        reverse=reverse,
    )
    assert torch.allclose(out, x.sum(1), atol=1e-4)


@pytest.mark.parametrize("matrices", [2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(matrices, transposed):
    rows = torch.arange(matrices * 64, dtype=torch.int16)
    out = int32(32, matrices)
    # Rows lie 48 bytes apart and in reverse order, so that each lane's address counts. Those of spare lanes do not.
    run(
        "const u16* x, u32* out",
        f"""if (t < {matrices * 8})
            for (int i = 0; i < 8; ++i) ((u16*)(smem + 48 * ({matrices * 8 - 1} - t)))[i] = x[t * 8 + i];
        __syncwarp();
        u32 r[{matrices}];
        ldmatrix_x{matrices}{"_trans" * transposed}(r, smem + 48 * ({matrices * 8 - 1} - t));
        for (int i = 0; i < {matrices}; ++i) out[t * {matrices} + i] = r[i];""",
        [rows, out],
        shared=48 * 8 * matrices,
        sanitize=True,
    )
    got = out.numpy().view(np.int16).reshape(32, matrices, 2)
    matrix = rows.numpy().reshape(matrices, 8, 8)
    if transposed:
        matrix = matrix.transpose(0, 2, 1)
    for lane in range(32):
        for m in range(matrices):
            assert got[lane, m].tolist() == matrix[m, lane // 4, lane % 4 * 2 :][:2].tolist()


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("k", [16, 8])
def test_mma(name, k):
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(16, k, generator=generator).to(DTYPES[name])
    b = torch.randn(k, 8, generator=generator).to(DTYPES[name])
    c, out = torch.randn(16, 8, generator=generator), torch.zeros(16, 8)
    columns = b.T.contiguous()  # a pair of b is two k of one n
    call = f"mma_16816<{name}>(d, a, b[0], b[1])" if k == 16 else f"mma_1688<{name}>(d, a[0], a[1], b[0])"
    run(
        "const u32* A, const u32* B, const float* C, float* out",
        f"""int g = t / 4, q = t % 4;
        u32 a[4], b[2];
        for (int i = 0; i < {k // 4}; ++i) a[i] = A[(g + i % 2 * 8) * {k // 2} + q + i / 2 * 4];
        for (int i = 0; i < {k // 8}; ++i) b[i] = B[g * {k // 2} + q + i * 4];
        float d[4];
        for (int i = 0; i < 4; ++i) d[i] = C[(g + i / 2 * 8) * 8 + 2 * q + i % 2];
        {call};
        for (int i = 0; i < 4; ++i) out[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = d[i];""",
        [a, columns, c, out],
    )
    assert torch.allclose(out, a.float() @ b.float() + c, atol=1e-5)


GEMM = """
// C (M x N) = A (M x K) B (K x N): tiles of 64 x 64, slices of 32 of K in two stages, four warps of 32 x 32.
constexpr int kStage = 64 * 80 + 32 * 144;  // rows of A and B, padded by 16 bytes
__device__ __forceinline__ void fetch(unsigned char* stage, const u16* A, const u16* B, int N, int K, int m0, int n0, int k0) {
    #pragma unroll
    for (int i = threadIdx.x; i < 256; i += 128) {
        int row = i / 4, part = i % 4;
        cp_async_16(stage + row * 80 + part * 16, A + (i64)(m0 + row) * K + k0 + part * 8, k0 < K);
        row = i / 8, part = i % 8;
        cp_async_16(stage + 64 * 80 + row * 144 + part * 16, B + (i64)(k0 + row) * N + n0 + part * 8, k0 < K);
    }
    cp_async_commit();
}
extern "C" __global__ void __launch_bounds__(128) gemm(const u16* __restrict__ A, const u16* __restrict__ B, float* C, int N, int K) {
    int t = threadIdx.x, lane = t % 32, m0 = blockIdx.y * 64, n0 = blockIdx.x * 64;
    int wm = t / 32 / 2 * 32, wn = t / 32 % 2 * 32;
    float d[2][4][4] = {};
    fetch(smem, A, B, N, K, m0, n0, 0);
    for (int k0 = 0, s = 0; k0 < K; k0 += 32, s ^= 1) {
        fetch(smem + (s ^ 1) * kStage, A, B, N, K, m0, n0, k0 + 32);
        cp_async_wait<PENDING>();
        FIRST_BARRIER;
        unsigned char *a_rows = smem + s * kStage, *b_rows = a_rows + 64 * 80;
        for (int k = 0; k < 32; k += 16) {
            u32 a[2][4], b[2][4];
            for (int i = 0; i < 2; ++i) {
                ldmatrix_x4(a[i], a_rows + (wm + i * 16 + lane % 16) * 80 + (k + lane / 16 * 8) * 2);
                ldmatrix_x4_trans(b[i], b_rows + (k + lane % 16) * 144 + (wn + i * 16 + lane / 16 * 8) * 2);
            }
            for (int i = 0; i < 2; ++i)
                for (int j = 0; j < 4; ++j) mma_16816<T>(d[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
        LAST_BARRIER;
    }
    for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j)
            for (int e = 0; e < 4; ++e)
                C[(i64)(m0 + wm + i * 16 + lane / 4 + e / 2 * 8) * N + n0 + wn + j * 8 + lane % 4 * 2 + e % 2] = d[i][j][e];
}
"""


def gemm(m, n, k, name="bf16", *, pending=1, first="__syncthreads()", last="__syncthreads()", **options):
    a, b, c = randn(m, k, dtype=DTYPES[name]), randn(k, n, dtype=DTYPES[name]), torch.zeros(m, n)
    defines = {"T": name, "PENDING": pending, "FIRST_BARRIER": first, "LAST_BARRIER": last}
    source = "extern __shared__ unsigned char smem[];" + GEMM
    shared = 2 * (64 * 80 + 32 * 144)
    emulation.emulate(
        source, "gemm", (n // 64, m // 64), 128, shared, [a, b, c, (n, "int"), (k, "int")], defines, **options
    )
    return c, a.float() @ b.float()


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("sanitize", [False, True])
def test_a_pipelined_matrix_product(name, sanitize):
    got, exact = gemm(128, 192, 160, name, sanitize=sanitize)
    assert torch.allclose(got, exact, atol=1e-3)


# ---- Mistakes


def test_a_missing_wait_shows_as_nan():
    got, _ = gemm(64, 64, 64, pending=2)
    assert got.isnan().any()


@pytest.mark.parametrize("missing", ["first", "last"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_missing_barrier_is_a_race(missing, reverse):
    with pytest.raises(RuntimeError, match=r"race: thread \d+ (reads|writes) byte \d+ .* no barrier in between"):
        gemm(64, 64, 96, **{missing: ""}, sanitize=True, reverse=reverse)


def test_a_missing_barrier_shows_in_one_of_the_two_orders():
    results = [gemm(64, 64, 96, first="", reverse=reverse)[0] for reverse in (False, True)]
    assert any(got.isnan().any() for got in results)


@pytest.mark.parametrize(("size", "type_"), [(16, "uint4"), (8, "uint2"), (4, "u32")])
def test_asynchronous_copies(size, type_):
    x, out = torch.arange(32 * 16, dtype=torch.uint8), torch.zeros(2, 32 * size, dtype=torch.uint8)
    run(
        f"const unsigned char* x, {type_}* out",
        f"""cp_async_{size}(smem + t * {size}, x + t * {size}, t % 3 != 0);
        cp_async_commit();
        out[t] = *({type_}*)(smem + t * {size});
        cp_async_wait<0>();
        out[32 + t] = *({type_}*)(smem + t * {size});""",
        [x, out],
        shared=32 * size,
    )
    expected = x[: 32 * size].view(32, size).clone()
    expected[::3] = 0
    assert (out[0] == 255).all()  # NaN: nothing has arrived before the wait
    assert torch.equal(out[1].view(32, size), expected)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("cp_async_16(smem + t * 8, x, true);", r"thread 1, line 4: misaligned: cp_async_16"),
        ("cp_async_16(smem, x + 1, true);", r"thread 0, line 4: misaligned: cp_async_16"),
        (
            "cp_async_16(smem + t * 32, x, true);",
            r"thread 16, line 4: shared memory overrun: cp_async_16 to byte 512 of 512",
        ),
        ("cp_async_4(smem, x + 4 * t, true);", r"thread 16: global memory overrun: byte 256 of the 256 of argument 0"),
        ("u32 r[4]; ldmatrix_x4(r, smem + 8 * t);", r"thread 1, line 4: misaligned: ldmatrix_x4"),
        (
            "u32 r[2]; ldmatrix_x2(r, smem + 48 * t);",
            r"thread 11, line 4: shared memory overrun: ldmatrix_x2 .* 528 of 512",
        ),
        ("u32 r[4]; ldmatrix_x4_trans(r, x);", r"shared memory overrun"),
    ],
)
def test_bad_addresses_of_helpers(body, message):
    with pytest.raises(RuntimeError, match=message):
        run("float* x", body, [torch.zeros(64)], shared=512)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("((float*)smem)[t * 4] = 1;", r"thread 25: shared memory overrun: byte 400 of 400, at line 4"),
        ("x[t] = ((float*)smem)[t * 4];", r"thread 25: shared memory overrun: byte 400 of 400, at line 4"),
        ("smem[-1 - t] = 3;", r"shared memory overrun: a write \d+ bytes before"),
        ("x[t * 3] = 0;", r"thread 22: global memory overrun: byte 264 of the 256 of argument 0, at line 4"),
        ("y[t] = x[64 + t];", r"thread 0: global memory overrun: byte 256 of the 256 of argument 0, at line 4"),
        (
            "y[t] = 0;",
            r"thread \d+: global memory overrun: byte .* of the 12 of argument 1|write to byte 12 of the 12 of argument 1",
        ),
        ("x[t - 1] = 1;", r"global memory overrun: a write to byte -4 of the 256 of argument 0"),
        ("*(float*)16 = 0;", r"thread 0: access to the invalid address 0x10 .*, at line 4"),
    ],
)
def test_overruns(body, message):
    x, y = torch.zeros(64), torch.zeros(3)
    with pytest.raises(RuntimeError, match=message) as error:
        run("float* x, float* y", body, [x, y], shared=400)
    assert "\n" not in str(error.value)
    assert not x.any()


def test_unwritten_shared_memory_is_nan():
    out = torch.zeros(3, 32)
    body = "int b = blockIdx.x; float* f = (float*)smem; out[b * 32 + t] = f[t]; f[t] = 1; out[64 + t] = to_float(((bf16*)smem)[64]);"
    run("float* out", body, [out], grid=(2,), shared=132)
    assert out.isnan().all()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (t < 32) __syncthreads();", r"line 4: deadlock: 32 threads wait in __syncthreads\(\), 32 have exited"),
        ("if (t < 9)\n__syncthreads();\nelse\n__syncthreads();", r"line 7: deadlock: .* wait in the one at line 5"),
        ("if (t == 3) return;\n__syncwarp();", r"line 5: deadlock: 31 lanes of warp 0 wait in __syncwarp\(\)"),
        ("if (t < 40) __syncthreads(); else shfl_xor(1u, 1);", r"deadlock: 24 lanes of warp 1 wait in shfl_xor"),
        (
            "u32 r[2];\nif (t % 2) __syncwarp();\nelse ldmatrix_x2(r, smem);",
            r"deadlock: .* other lanes of the warp wait",
        ),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_deadlocks(body, message, reverse):
    if reverse:
        message = "deadlock"
    with pytest.raises(RuntimeError, match=message):
        run("", body, [], block=64, shared=256, reverse=reverse)


def test_endless_loops_and_deep_stacks_end():
    with pytest.raises(RuntimeError, match="not finished after 1 seconds"):
        run("volatile int* flag", "while (!*flag) {}", [int32(1)], timeout=1)
    deep = "__device__ int deep(int n) { volatile int x[99]; x[n % 99] = n; return n ? deep(n - 1) + x[0] : 0; }"
    with pytest.raises(RuntimeError, match="local variables need more than 65536 bytes"):
        run("int* out", "out[t] = deep(1000);", [int32(32)], before=deep)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("float f[4] = {1, 2, 3, 4}; f[n] = 0; x[t] = f[t % 4];", r"line 4: index 4 is outside of the array"),
        ("x[t] = ((float4*)(smem + 4 * n + 4))->x;", r"line 4: misaligned access"),
        ("x[t] = n * 1000000000;", r"line 4: signed overflow"),
        ("x[t] = 1 << (n * 8);", r"line 4: undefined shift by 32"),
        (
            "((uint4*)smem)[t % 4] = make_uint4(t, 0, 0, 0);",
            r"race: thread 4 writes byte 0 .* thread 0 wrote.*, at line 4",
        ),
        ("((float*)smem)[t] = 1;\nx[t] = ((float*)smem)[(t + 1) % 32];", r"race: .*, at line [45]"),
        (
            "((float*)smem)[t] = 1;\nu32 r[2];\nldmatrix_x2(r, smem);",
            r"line 6: race: thread 0 reads byte 4 .* thread 1 wrote",
        ),
    ],
)
def test_what_only_sanitize_finds(body, message):
    for sanitize in (False, True):
        if sanitize:
            with pytest.raises(RuntimeError, match=message):
                run("float* x, int n", body, [torch.zeros(32), (4, "int")], shared=256, sanitize=True)
        else:
            run("float* x, int n", body.replace("f[n]", "f[n - 1]"), [torch.zeros(32), (4, "int")], shared=256)


def test_barriers_within_a_warp_and_a_block_prevent_races():
    x = torch.zeros(64)
    body = """float* f = (float*)smem;
    for (int i = 0; i < 3; ++i) {
        f[t] = i; __syncwarp(); x[t] = f[t ^ 1]; __syncwarp();
        f[t] = t; __syncthreads(); x[t] += f[63 - t]; __syncthreads();
        u32 r[4]; ldmatrix_x4(r, smem + t / 32 * 128 + t % 8 * 16);
        f[t] = i;
        __syncthreads();
    }"""
    run("float* x", body, [x], block=64, shared=256, sanitize=True)
    assert torch.equal(x, 2 + 63 - torch.arange(64.0))
