// The first product of the feed-forward on Hopper: hidden = gelu((y * gate) weight^T + bias), and the
// sums of its squares for GRN.
//
// A thread block takes ROWS rows, scales them by their image's gate once, and keeps them in shared memory; the
// weights stream past, COLS rows of them at a time. While the tensor cores multiply the rows with the next columns,
// the same warps pass the last through bias, GELU and squares: two sets of accumulators. So arithmetic and products
// overlap, and the map is read once.
//
// Rows run on across images, two of which a tile may touch. Sums have a fixed order.
//
// Defined at compile time: T, CHANNELS (a multiple of 16), HIDDEN, ROWS (64 a warpgroup), COLS (80), TOGETHER (blocks
// on a multiprocessor), SHARED_BYTES.

extern __shared__ unsigned char smem[];

constexpr int K = CHANNELS, N = HIDDEN, THREADS = 2 * ROWS, WARPS = THREADS / 32, DEEP = (K + 63) / 64,
              CHUNKS = N / COLS;
constexpr int A_BYTES = DEEP * ROWS * 128, B_BYTES = DEEP * COLS * 128, AT_B = A_BYTES, AT_SUMS = AT_B + 2 * B_BYTES;
static_assert(AT_SUMS + 4 * (WARPS + 1) * COLS == SHARED_BYTES && CHUNKS % 2 == 0 && CHUNKS * COLS == N, "sizes");

// Where piece `c` (eight elements) of a row lies.
template <int HIGH> __device__ __forceinline__ int piece_at(int row, int c) {
  return c / 8 * HIGH * 128 + row * 128 + ((c % 8 ^ row % 8) << 4);
}

struct Tile {
  int row0, rows, border;                                // `border`: the first row of the second image, or beyond
};

// A thread has the same piece of every ACROSS-th row.
__device__ __forceinline__ void fetch_weights(const T* __restrict__ weight, int chunk) {
  constexpr int PIECES = K / 8, ACROSS = THREADS / PIECES;
  const int c = threadIdx.x % PIECES, first = threadIdx.x / PIECES;
  unsigned char* to = smem + AT_B + chunk % 2 * B_BYTES;
  const T* from = weight + ((i64)chunk * COLS + first) * K + 8 * c;
  if (first >= ACROSS) return;
#pragma unroll
  for (int n = 0; n < COLS; n += ACROSS)
    if (first + n < COLS) cp_async_16(to + piece_at<COLS>(first + n, c), from + n * K, true);
}

__device__ __forceinline__ void multiply(float (&acc)[COLS / 2], int chunk) {
  const u64 a = tile_at(smem + uniform(threadIdx.x / 128) * 64 * 128), b = tile_at(smem + AT_B + chunk % 2 * B_BYTES);
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < K / 16; k++)
    wgmma<T, COLS>(acc, a + (k / 4 * ROWS * 128 + k % 4 * 32) / 16, b + (k / 4 * COLS * 128 + k % 4 * 32) / 16, k > 0);
  wgmma_commit();
}

// Column sums of a warp's squares: four columns of a lane over the eight lanes that share
// them; one column is left in each.
__device__ __forceinline__ float reduced(float a, float b, float c, float d) {
  const int lane = threadIdx.x % 32;
  const bool upper = lane & 16, odd = lane & 8;
  const float first = (upper ? c : a) + shfl_xor(upper ? a : c, 16),
              second = (upper ? d : b) + shfl_xor(upper ? b : d, 16);
  const float one = (odd ? second : first) + shfl_xor(odd ? first : second, 8);
  return one + shfl_xor(one, 4);
}

// SPECIAL: some of the warp's rows do not exist, or two images share them.
template <bool SPECIAL>
__device__ __forceinline__ void finish_as(const float (&acc)[COLS / 2], const T* __restrict__ bias,
                                          T* __restrict__ hidden, const Tile& tile, int chunk) {
  const int lane = threadIdx.x % 32, warp = uniform(threadIdx.x / 32), t = lane % 4, row = 16 * warp + lane / 4;
  const bool crosses = SPECIAL && tile.border > 16 * warp && tile.border < 16 * warp + 16;
  const bool there[2] = {!SPECIAL || row < tile.rows, !SPECIAL || row + 8 < tile.rows};
  // Of a warp that two images share, the first one's rows count here, the second one's in a line of their own.
  const bool own[2] = {there[0] && !(crosses && row >= tile.border), there[1] && !(crosses && row + 8 >= tile.border)};
  // of the column that `reduced` leaves here
  float* sums = (float*)(smem + AT_SUMS) + warp * COLS + (lane & 16 ? 8 : 0) + 2 * t + (lane & 8 ? 1 : 0);
  T* to = hidden + (i64)(tile.row0 + row) * N + chunk * COLS + t / 2 * 4 + t % 2 * 8;
  u32 b[COLS / 16][2];
#pragma unroll
  for (int q = 0; q < COLS / 16; q++)
#pragma unroll
    for (int j = 0; j < 2; j++) b[q][j] = __ldg((const u32*)(bias + chunk * COLS + 16 * q + 8 * j + 2 * t));
#pragma unroll
  for (int q = 0; q < COLS / 16; q++) {
    float v[2][4];                                       // [row][column]
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        v[r][2 * j] = gelu(acc[8 * q + 4 * j + 2 * r] + lo_float<T>(b[q][j]));
        v[r][2 * j + 1] = gelu(acc[8 * q + 4 * j + 2 * r + 1] + hi_float<T>(b[q][j]));
      }
      const u32 low = pack2<T>(v[r][0], v[r][1]), high = pack2<T>(v[r][2], v[r][3]);
      // Two lanes exchange halves, so that each stores four columns side by side.
      const u32 other = __float_as_uint(shfl_xor(__uint_as_float(t % 2 ? low : high), 1));
      if (there[r]) *(uint2*)(to + (i64)8 * r * N + 16 * q) = t % 2 ? make_uint2(other, high) : make_uint2(low, other);
    }
    float square[4];
#pragma unroll
    for (int e = 0; e < 4; e++) square[e] = (own[0] ? v[0][e] * v[0][e] : 0.f) + (own[1] ? v[1][e] * v[1][e] : 0.f);
    const float sum = reduced(square[0], square[1], square[2], square[3]);
    if (!(lane & 4)) sums[16 * q] = sum;
    if (crosses) {
#pragma unroll
      for (int e = 0; e < 4; e++)
        square[e] = (there[0] && !own[0] ? v[0][e] * v[0][e] : 0.f) + (there[1] && !own[1] ? v[1][e] * v[1][e] : 0.f);
      const float second = reduced(square[0], square[1], square[2], square[3]);
      if (!(lane & 4)) sums[(WARPS - warp) * COLS + 16 * q] = second;
    }
  }
}

__device__ __forceinline__ void finish(const float (&acc)[COLS / 2], const T* __restrict__ bias, T* __restrict__ hidden,
                                       const Tile& tile, int chunk) {
  const int first = 16 * uniform(threadIdx.x / 32);
  if (first + 16 > tile.rows || (tile.border > first && tile.border < first + 16))
    finish_as<true>(acc, bias, hidden, tile, chunk);
  else finish_as<false>(acc, bias, hidden, tile, chunk);
}

// The warps' sums of a chunk to partial[tile][2][N].
__device__ __forceinline__ void store_sums(float* __restrict__ partial, const Tile& tile, int chunk) {
  if (threadIdx.x >= COLS) return;
  const float* sums = (const float*)(smem + AT_SUMS) + threadIdx.x;
  float first = 0.f, second = tile.border % 16 != 0 && tile.border < ROWS ? sums[WARPS * COLS] : 0.f;
#pragma unroll
  for (int w = 0; w < WARPS; w++) {
    const float sum = sums[w * COLS];
    if (16 * w < tile.border) first += sum;
    else second += sum;
  }
  float* to = partial + (i64)blockIdx.x * 2 * N + chunk * COLS + threadIdx.x;
  to[0] = first;
  if (tile.border < tile.rows) to[N] = second;
}

// One chunk: the next one's products begin, then this one's results leave.
__device__ __forceinline__ void step(float (&now)[COLS / 2], float (&next)[COLS / 2], const T* __restrict__ weight,
                                     const T* __restrict__ bias, T* __restrict__ hidden, float* __restrict__ partial,
                                     const Tile& tile, int chunk) {
  cp_async_wait<0>();
  show_tensor_cores();
  // the next weights are there, and nobody multiplies with the last
  __syncthreads();
  if (chunk + 1 < CHUNKS) multiply(next, chunk + 1);
  if (chunk + 2 < CHUNKS) fetch_weights(weight, chunk + 2);
  cp_async_commit();
  if (chunk > 0) store_sums(partial, tile, chunk - 1);
  __syncthreads();                                       // the sums are read
  finish(now, bias, hidden, tile, chunk);
  wgmma_wait();
  keep(next);
}

extern "C" __global__ void __launch_bounds__(THREADS, TOGETHER)
    expand(const T* __restrict__ y, const T* __restrict__ gate, const T* __restrict__ weight,
           const T* __restrict__ bias, T* __restrict__ hidden, float* __restrict__ partial, int size, int n_rows) {
  Tile tile;
  tile.row0 = blockIdx.x * ROWS;
  tile.rows = min(ROWS, n_rows - tile.row0);
  const int first = tile.row0 / size, images = n_rows / size;
  tile.border = (first + 1) * size - tile.row0;
  fetch_weights(weight, 0);
  cp_async_commit();
#pragma unroll 10
  for (int i = threadIdx.x; i < ROWS * (K / 8); i += THREADS) {
    const int row = i / (K / 8), c = i % (K / 8), image = min(first + (row >= tile.border), images - 1);
    const uint4 a = __ldg((const uint4*)(y + (i64)(tile.row0 + min(row, tile.rows - 1)) * K + 8 * c)),
                b = __ldg((const uint4*)(gate + (i64)image * K + 8 * c));
    *(uint4*)(smem + piece_at<ROWS>(row, c)) =
        make_uint4(times2<T>(a.x, b.x), times2<T>(a.y, b.y), times2<T>(a.z, b.z), times2<T>(a.w, b.w));
  }
  float even[COLS / 2], odd[COLS / 2];
  cp_async_wait<0>();
  show_tensor_cores();
  __syncthreads();
  multiply(even, 0);
  fetch_weights(weight, 1);
  cp_async_commit();
  wgmma_wait();
  keep(even);
#pragma unroll 1
  for (int chunk = 0; chunk < CHUNKS; chunk += 2) {
    step(even, odd, weight, bias, hidden, partial, tile, chunk);
    step(odd, even, weight, bias, hidden, partial, tile, chunk + 1);
  }
  __syncthreads();
  store_sums(partial, tile, CHUNKS - 1);
}
