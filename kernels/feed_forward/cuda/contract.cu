// The second product of the feed-forward on Hopper: output = residual + bias + (hidden * factor) weight^T.
//
// Thread blocks go from tile to tile, ROWS rows by COLS columns of the output. Rows of the hidden tensor, rows of the
// weight and GRN's factors come through a ring of STAGES steps, 64 of the depth each, that fills on across tiles. A
// warp takes its 16 rows out of the ring and multiplies them with their images' factors in registers; from there the
// tensor cores (`wgmma`, asynchronous) multiply them with the weight, which they read in the ring. While they do, the
// next step's rows are scaled and later ones fetched.
//
// Rows run on across images, of which a tile may touch SPAN.
//
// Defined at compile time: T, HIDDEN (a multiple of 64), CHANNELS, ROWS (64 a warpgroup), COLS (80, 160 or 320), STAGES
// (at least 3), SPAN, SHARED_BYTES.

extern __shared__ unsigned char smem[];

constexpr int K = HIDDEN, N = CHANNELS, THREADS = 2 * ROWS, STEPS = K / 64, WIDE = COLS < 160 ? COLS : 160,
              PARTS = COLS / WIDE;
constexpr int A_BYTES = ROWS * 128, B_BYTES = COLS * 128, F_BYTES = SPAN * 128;
constexpr int AT_B = STAGES * A_BYTES, AT_F = AT_B + STAGES * B_BYTES;
static_assert(AT_F + STAGES * F_BYTES == SHARED_BYTES && STEPS * 64 == K && PARTS * WIDE == COLS && N % COLS == 0 &&
                  STAGES >= 3,
              "sizes");

struct Problem {
  const T *hidden, *factor, *weight;
  int size, n_rows, images, tiles;
};

// What a thread fetches next: the same piece (eight elements) of every ACROSS-th row of the hidden tensor and of the
// weight. These rows are a multiple of eight apart, so that the piece stands in the same place of each.
constexpr int ACROSS = THREADS / 8;
static_assert(32 * SPAN <= THREADS, "a thread has a pair of factors");

struct Cursor {
  int tile, k, slot, rows;                               // `rows` that are left from the thread's first on
  const T *hidden, *weight, *factor;
};

__device__ __forceinline__ int after(int slot) { return slot + 1 == STAGES ? 0 : slot + 1; }
__device__ __forceinline__ int first_row(int tile) { return tile / (N / COLS) * ROWS; }
__device__ __forceinline__ int first_column(int tile) { return tile % (N / COLS) * COLS; }
__device__ __forceinline__ int piece_at() {
  return threadIdx.x / 8 * 128 + ((threadIdx.x % 8 ^ threadIdx.x / 8 % 8) << 4);
}

__device__ __forceinline__ void begin_tile(const Problem& p, Cursor& next) {
  const int c = threadIdx.x % 8, first = threadIdx.x / 8, row0 = first_row(next.tile),
            image = min(row0 / p.size + (int)threadIdx.x / 32, p.images - 1);
  next.k = 0;
  next.rows = p.n_rows - row0 - first;
  next.hidden = p.hidden + (i64)(row0 + first) * K + 8 * c;
  next.weight = p.weight + (i64)(first_column(next.tile) + first) * K + 8 * c;
  next.factor = p.factor + (i64)image * K + threadIdx.x % 32 * 2;
}

__device__ __forceinline__ void fetch(const Problem& p, Cursor& next) {
  if (next.tile < p.tiles) {
    unsigned char *to = smem + next.slot * A_BYTES + piece_at(),
                  *weight_to = smem + AT_B + next.slot * B_BYTES + piece_at();
#pragma unroll
    for (int n = 0; n < ROWS; n += ACROSS) cp_async_16(to + n * 128, next.hidden + n * K, n < next.rows);
#pragma unroll
    for (int n = 0; n < COLS; n += ACROSS)
      if (n + ACROSS <= COLS || threadIdx.x / 8 + n < COLS) cp_async_16(weight_to + n * 128, next.weight + n * K, true);
    // A lane of each four finds its pairs side by side.
    const int pair = threadIdx.x % 32;
    if (threadIdx.x < 32 * SPAN)
      cp_async_4(smem + AT_F + next.slot * F_BYTES + threadIdx.x / 32 * 128 + pair % 4 * 32 + pair / 4 * 4, next.factor,
                 true);
    next.slot = after(next.slot);
    next.hidden += 64;
    next.weight += 64;
    next.factor += 64;
    if (++next.k == STEPS) {
      next.tile += gridDim.x;
      begin_tile(p, next);
    }
  }
  cp_async_commit();
}

// A step's rows of the warp, scaled, for four products. `images`: of a lane's two rows, counted from the tile's first.
__device__ __forceinline__ void load(u32 (&a)[4][4], int slot, const int (&images)[2]) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane % 16;
  const unsigned char *rows = smem + slot * A_BYTES + row * 128,
                      *factors = smem + AT_F + slot * F_BYTES + lane % 4 * 32;
#pragma unroll
  for (int j = 0; j < 4; j++) ldmatrix_x4(a[j], rows + ((2 * j + lane / 16 ^ row % 8) << 4));
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const uint4 low = *(const uint4*)(factors + images[r] * 128),
                high = *(const uint4*)(factors + images[r] * 128 + 16);
    const u32 f[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      a[j][r] = times2<T>(a[j][r], f[2 * j]);
      a[j][2 + r] = times2<T>(a[j][2 + r], f[2 * j + 1]);
    }
  }
}

// One step: its products begin, then the next one's rows are made, `a` to `ahead`.
__device__ __forceinline__ void step(const Problem& p, float (&acc)[PARTS][WIDE / 2], const u32 (&a)[4][4],
                                     u32 (&ahead)[4][4], int k, int& slot, Cursor& next, const int (&images)[2]) {
  const u64 b = tile_at(smem + AT_B + slot * B_BYTES);
  wgmma_begin();
#pragma unroll
  for (int j = 0; j < 4; j++)
#pragma unroll
    for (int part = 0; part < PARTS; part++)
      wgmma<T, WIDE>(acc[part], a[j], b + (part * WIDE * 128 + j * 32) / 16, k > 0 || j > 0);
  wgmma_commit();
  wgmma_wait<1>();
  cp_async_wait<STAGES - 3>();
  show_tensor_cores();
  // the next step is there, and nobody multiplies with the last, whose place is free
  __syncthreads();
  fetch(p, next);
  slot = after(slot);
  if (k + 1 < STEPS) load(ahead, slot, images);
}

// Two lanes exchange halves of their sums, so that each has four columns side by side. Where they are, of the
// tile's first row and column:
__device__ __forceinline__ i64 first_place(int tile) {
  const int lane = threadIdx.x % 32, t = lane % 4, row = first_row(tile) + threadIdx.x / 32 * 16 + lane / 4;
  return (i64)row * N + first_column(tile) + t / 2 * 4 + t % 2 * 8;
}

// A part's residual; asked for while the last products run. Rows that do not exist have none.
__device__ __forceinline__ void fetch_residual(uint2 (&x)[WIDE / 16][2], const T* from, const bool (&there)[2]) {
#pragma unroll
  for (int q = 0; q < WIDE / 16; q++)
#pragma unroll
    for (int r = 0; r < 2; r++)
      x[q][r] = there[r] ? __ldg((const uint2*)(from + 8 * r * N + 16 * q)) : make_uint2(0, 0);
}

// Bias and residual to a part's sums, and these to the output.
__device__ __forceinline__ void finish(const float (&acc)[WIDE / 2], const uint2 (&x)[WIDE / 16][2], const T* bias,
                                       T* output, const bool (&there)[2]) {
  const bool odd = threadIdx.x % 2;
#pragma unroll
  for (int q = 0; q < WIDE / 16; q++) {
    const uint2 b = bias ? __ldg((const uint2*)(bias + 16 * q)) : make_uint2(0, 0);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float *low = acc + 8 * q + 2 * r, *high = low + 4;
      const float first = shfl_xor(odd ? low[0] : high[0], 1), second = shfl_xor(odd ? low[1] : high[1], 1);
      const float v0 = (odd ? first : low[0]) + lo_float<T>(b.x) + lo_float<T>(x[q][r].x),
                  v1 = (odd ? second : low[1]) + hi_float<T>(b.x) + hi_float<T>(x[q][r].x);
      const float v2 = (odd ? high[0] : first) + lo_float<T>(b.y) + lo_float<T>(x[q][r].y),
                  v3 = (odd ? high[1] : second) + hi_float<T>(b.y) + hi_float<T>(x[q][r].y);
      if (there[r]) *(uint2*)(output + 8 * r * N + 16 * q) = make_uint2(pack2<T>(v0, v1), pack2<T>(v2, v3));
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    contract(const T* __restrict__ hidden, const T* __restrict__ factor, const T* __restrict__ weight,
             const T* __restrict__ bias, const T* __restrict__ residual, T* __restrict__ output, int size, int n_rows) {
  const Problem p{hidden, factor, weight, size, n_rows, n_rows / size, (n_rows + ROWS - 1) / ROWS * (N / COLS)};
  Cursor next;
  next.tile = blockIdx.x;
  next.slot = 0;
  begin_tile(p, next);
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
    const bool there[2] = {row < n_rows, row + 8 < n_rows};
    const i64 place = first_place(tile);
    uint2 x[WIDE / 16][2];
    fetch_residual(x, residual + place, there);
    wgmma_wait();
#pragma unroll
    for (int part = 0; part < PARTS; part++) keep(acc[part]);
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
      if (part > 0) fetch_residual(x, residual + place + part * WIDE, there);
      finish(acc[part], x, bias ? bias + place % N + part * WIDE : nullptr, output + place + part * WIDE, there);
    }
  }
  cp_async_wait<0>();
}
