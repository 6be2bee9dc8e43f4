// The second product of the feed-forward on Hopper: output = residual + bias + (hidden * factor) weight^T.
//
// Blocks of threads go from tile to tile, ROWS rows by COLS columns of the output. Rows of the hidden tensor, rows of the weight and GRN's
// factors come through a ring of STAGES steps, 64 of the depth each, that fills on across tiles. A warp takes its 16 rows out of the ring and
// multiplies them with their images' factors in registers; from there the tensor cores (`wgmma`, asynchronous) multiply them with the
// weight, which they read in the ring. While they do, the next step's rows are scaled and later ones fetched.
//
// Rows run on across images, of which a tile may touch SPAN.
//
// Defined from outside: T, HIDDEN (a multiple of 64), CHANNELS, ROWS (64 a warpgroup), COLS (80, 160 or 320), STAGES (at least 3), SPAN, RESIDENT (1: the
// weight stays in shared memory), TOGETHER (blocks on a multiprocessor), SHARED_BYTES.

extern __shared__ unsigned char smem[];

constexpr int K = HIDDEN, N = CHANNELS, THREADS = 2 * ROWS, STEPS = K / 64, WIDE = COLS < 160 ? COLS : 160, PARTS = COLS / WIDE;
constexpr int A_BYTES = ROWS * 128, B_BYTES = COLS * 128, F_BYTES = SPAN * 128;
constexpr int AT_B = STAGES * A_BYTES, AT_F = AT_B + (RESIDENT ? STEPS : STAGES) * B_BYTES;
static_assert(AT_F + STAGES * F_BYTES == SHARED_BYTES && STEPS * 64 == K && PARTS * WIDE == COLS && N % COLS == 0 && STAGES >= 3, "sizes");
static_assert(!RESIDENT || N == COLS, "all tiles need the same weight");

struct Problem {
  const T *hidden, *factor, *weight;
  int size, n_rows, images, tiles;
};

// What is fetched next.
struct Cursor {
  int tile, k, slot;
};

__device__ __forceinline__ int after(int slot) { return slot + 1 == STAGES ? 0 : slot + 1; }
__device__ __forceinline__ int first_row(int tile) { return tile / (N / COLS) * ROWS; }
__device__ __forceinline__ int first_column(int tile) { return tile % (N / COLS) * COLS; }

// A thread has the same piece (eight elements) of every ACROSS-th row; these are a multiple of eight apart, so that it stands in the same place.
constexpr int ACROSS = THREADS / 8;

__device__ __forceinline__ void fetch_weight(const Problem& p, int column0, int k, unsigned char* to) {
  const int c = threadIdx.x % 8, first = threadIdx.x / 8;
  const T* from = p.weight + (i64)(column0 + first) * K + 64 * k + 8 * c;
  to += first * 128 + ((c ^ first % 8) << 4);
#pragma unroll
  for (int n = 0; n < COLS; n += ACROSS)
    if (n + ACROSS <= COLS || first + n < COLS) cp_async_16(to + n * 128, from + n * K, true);
}

__device__ __forceinline__ void fetch(const Problem& p, Cursor& next) {
  if (next.tile < p.tiles) {
    const int c = threadIdx.x % 8, first = threadIdx.x / 8, row0 = first_row(next.tile);
    const T* from = p.hidden + 64 * next.k + 8 * c;
    unsigned char* to = smem + next.slot * A_BYTES + first * 128 + ((c ^ first % 8) << 4);
#pragma unroll
    for (int n = 0; n < ROWS; n += ACROSS) cp_async_16(to + n * 128, from + (i64)min(row0 + first + n, p.n_rows - 1) * K, true);
    if (!RESIDENT) fetch_weight(p, first_column(next.tile), next.k, smem + AT_B + next.slot * B_BYTES);
    // Pairs of factors, laid out so that those of a lane of each four stand together.
    for (int i = threadIdx.x; i < 32 * SPAN; i += THREADS) {
      const int pair = i % 32, image = min(row0 / p.size + i / 32, p.images - 1);
      cp_async_4(smem + AT_F + next.slot * F_BYTES + i / 32 * 128 + pair % 4 * 32 + pair / 4 * 4, p.factor + (i64)image * K + 64 * next.k + 2 * pair, true);
    }
    next.slot = after(next.slot);
    if (++next.k == STEPS) {
      next.k = 0;
      next.tile += gridDim.x;
    }
  }
  cp_async_commit();
}

// A step's rows of the warp, scaled, for four products. `images`: of a lane's two rows, counted from the tile's first.
__device__ __forceinline__ void load(u32 (&a)[4][4], int slot, const int (&images)[2]) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane % 16;
  const unsigned char *rows = smem + slot * A_BYTES + row * 128, *factors = smem + AT_F + slot * F_BYTES + lane % 4 * 32;
#pragma unroll
  for (int j = 0; j < 4; j++) ldmatrix_x4(a[j], rows + ((2 * j + lane / 16 ^ row % 8) << 4));
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const uint4 low = *(const uint4*)(factors + images[r] * 128), high = *(const uint4*)(factors + images[r] * 128 + 16);
    const u32 f[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      a[j][r] = times2<T>(a[j][r], f[2 * j]);
      a[j][2 + r] = times2<T>(a[j][2 + r], f[2 * j + 1]);
    }
  }
}

// One step: its products begin, then the next one's rows are made, `a` to `ahead`.
__device__ __forceinline__ void step(const Problem& p, float (&acc)[PARTS][WIDE / 2], const u32 (&a)[4][4], u32 (&ahead)[4][4], int k, int& slot, Cursor& next, const int (&images)[2]) {
  const u64 b = tile_at(smem + AT_B + (RESIDENT ? k : slot) * B_BYTES);
  wgmma_begin();
#pragma unroll
  for (int j = 0; j < 4; j++)
#pragma unroll
    for (int part = 0; part < PARTS; part++) wgmma<T, WIDE>(acc[part], a[j], b + (part * WIDE * 128 + j * 32) / 16, k > 0 || j > 0);
  wgmma_commit();
  wgmma_wait<1>();
  cp_async_wait<STAGES - 3>();
  show_tensor_cores();
  __syncthreads();                                       // the next step is there, and nobody multiplies with the last, whose place is free
  fetch(p, next);
  slot = after(slot);
  if (k + 1 < STEPS) load(ahead, slot, images);
}

// Bias and residual to the sums, and the tile to the output. Two lanes exchange halves, so that each has four columns side by side.
__device__ __forceinline__ void finish(const float (&acc)[PARTS][WIDE / 2], const Problem& p, int tile, const T* __restrict__ bias, const T* __restrict__ residual, T* __restrict__ output) {
  const int lane = threadIdx.x % 32, t = lane % 4, row = first_row(tile) + threadIdx.x / 32 * 16 + lane / 4, column = first_column(tile) + t / 2 * 4 + t % 2 * 8;
#pragma unroll
  for (int q = 0; q < COLS / 16; q++) {
    const float* sums = acc[q / (WIDE / 16)] + q % (WIDE / 16) * 8;
    const uint2 b = bias ? __ldg((const uint2*)(bias + column + 16 * q)) : make_uint2(0, 0);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float *low = sums + 2 * r, *high = sums + 4 + 2 * r;
      const float first = shfl_xor(t % 2 ? low[0] : high[0], 1), second = shfl_xor(t % 2 ? low[1] : high[1], 1);
      const i64 place = (i64)(row + 8 * r) * N + column + 16 * q;
      if (row + 8 * r < p.n_rows) {
        const uint2 x = __ldg((const uint2*)(residual + place));
        const float v0 = (t % 2 ? first : low[0]) + lo_float<T>(b.x), v1 = (t % 2 ? second : low[1]) + hi_float<T>(b.x);
        const float v2 = (t % 2 ? high[0] : first) + lo_float<T>(b.y), v3 = (t % 2 ? high[1] : second) + hi_float<T>(b.y);
        *(uint2*)(output + place) = make_uint2(pack2<T>(v0 + lo_float<T>(x.x), v1 + hi_float<T>(x.x)), pack2<T>(v2 + lo_float<T>(x.y), v3 + hi_float<T>(x.y)));
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, TOGETHER)
    contract(const T* __restrict__ hidden, const T* __restrict__ factor, const T* __restrict__ weight, const T* __restrict__ bias, const T* __restrict__ residual, T* __restrict__ output, int size, int n_rows) {
  const Problem p{hidden, factor, weight, size, n_rows, n_rows / size, (n_rows + ROWS - 1) / ROWS * (N / COLS)};
  Cursor next{(int)blockIdx.x, 0, 0};
  if (RESIDENT)
    for (int k = 0; k < STEPS; k++) fetch_weight(p, 0, k, smem + AT_B + k * B_BYTES);
#pragma unroll 1
  for (int s = 0; s < STAGES - 1; s++) fetch(p, next);
  cp_async_wait<STAGES - 2>();
  show_tensor_cores();
  __syncthreads();
  float acc[PARTS][WIDE / 2];
  u32 even[4][4], odd[4][4];
  int slot = 0;
#pragma unroll 1
  for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const int row0 = first_row(tile), row = row0 + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    const int images[2] = {min(row, n_rows - 1) / size - row0 / size, min(row + 8, n_rows - 1) / size - row0 / size};
    load(even, slot, images);
#pragma unroll 1
    for (int k = 0; k + 1 < STEPS; k += 2) {
      step(p, acc, even, odd, k, slot, next, images);
      step(p, acc, odd, even, k + 1, slot, next, images);
    }
    if (STEPS % 2) step(p, acc, even, odd, STEPS - 1, slot, next, images);
    wgmma_wait();
#pragma unroll
    for (int part = 0; part < PARTS; part++) keep(acc[part]);
    finish(acc, p, tile, bias, residual, output);
  }
  cp_async_wait<0>();
}
