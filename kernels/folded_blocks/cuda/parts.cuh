// What blocks.cu and clusters.cu share: the weights of a run of blocks, vectors of 16-bit elements, one thread's share
// of a convolution, products by warps, and the wait of the whole grid.
//
// Defined at compile time: T, BLOCKS, THREADS.

extern __shared__ unsigned char smem[];

constexpr int WARPS = THREADS / 32;

__host__ __device__ constexpr int cover(int n, int by) { return (n + by - 1) / by; }
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
__host__ __device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }
__host__ __device__ constexpr int aligned(int bytes) { return (bytes + 127) / 128 * 128; }

struct Weights {
  const T *conv, *conv_bias, *down, *down_bias, *up, *up_bias, *first, *first_bias, *gamma, *second, *second_bias;
};
struct Chain { Weights blocks[BLOCKS]; };

__device__ __forceinline__ bool is_large(u64 large, int block) { return large >> block & 1; }

// Rows of `bytes` each, `stride` elements apart in memory and `pitch` apart in shared memory; rows
// beyond `there` repeat the last.
template <int BYTES_ROW>
__device__ __forceinline__ void copy_rows(T* to, const T* from, int rows, int there, int stride, int pitch) {
  constexpr int VECTORS = BYTES_ROW / 16;
  for (int i = threadIdx.x; i < rows * VECTORS; i += THREADS) {
    const int row = i / VECTORS, vector = i % VECTORS;
    cp_async_16(to + row * pitch + 8 * vector, from + (i64)min(row, there - 1) * stride + 8 * vector, true);
  }
}

template <int COUNT> struct Some { float v[COUNT]; };

__device__ __forceinline__ Some<2> widened(u32 a) { return {{lo_float<T>(a), hi_float<T>(a)}}; }
__device__ __forceinline__ Some<4> widened(uint2 a) {
  return {{lo_float<T>(a.x), hi_float<T>(a.x), lo_float<T>(a.y), hi_float<T>(a.y)}};
}

__device__ __forceinline__ Some<8> widened(uint4 a) {
  return {{lo_float<T>(a.x), hi_float<T>(a.x), lo_float<T>(a.y), hi_float<T>(a.y), lo_float<T>(a.z), hi_float<T>(a.z),
           lo_float<T>(a.w), hi_float<T>(a.w)}};
}
__device__ __forceinline__ uint4 narrowed(const Some<8>& a) {
  return make_uint4(pack2<T>(a.v[0], a.v[1]), pack2<T>(a.v[2], a.v[3]), pack2<T>(a.v[4], a.v[5]),
                    pack2<T>(a.v[6], a.v[7]));
}
__device__ __forceinline__ u32 narrowed(const Some<2>& a) { return pack2<T>(a.v[0], a.v[1]); }
__device__ __forceinline__ uint2 narrowed(const Some<4>& a) {
  return make_uint2(pack2<T>(a.v[0], a.v[1]), pack2<T>(a.v[2], a.v[3]));
}
typedef Some<8> Eight;

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// ---- Convolution
// acc[j] = COUNT neighbouring outputs of a row of one channel, over rows [begin, end) of a KxK kernel: `cells` are at
// its first row's, PITCH a row, `taps` at the channel's, TAPS_PITCH a row; both rows begin at 16 bytes.
template <int K, int COUNT, int PITCH, int TAPS_PITCH>
__device__ __forceinline__ void convolve(float (&acc)[COUNT], const float* cells, const float* taps, int begin,
                                         int end) {
#pragma unroll
  for (int j = 0; j < COUNT; j++) acc[j] = 0.f;
#pragma unroll 1
  for (int kh = begin; kh < end; kh++) {
    float in[cover(COUNT + K - 1, 4) * 4], tap[TAPS_PITCH];
    const float4 *from = (const float4*)(cells + kh * PITCH), *tap_from = (const float4*)(taps + kh * TAPS_PITCH);
#pragma unroll
    for (int q = 0; q < cover(COUNT + K - 1, 4); q++) {
      const float4 a = from[q];
      in[4 * q] = a.x, in[4 * q + 1] = a.y, in[4 * q + 2] = a.z, in[4 * q + 3] = a.w;
    }
#pragma unroll
    for (int q = 0; q < TAPS_PITCH / 4; q++) {
      const float4 a = tap_from[q];
      tap[4 * q] = a.x, tap[4 * q + 1] = a.y, tap[4 * q + 2] = a.z, tap[4 * q + 3] = a.w;
    }
#pragma unroll
    for (int kw = 0; kw < K; kw++)
#pragma unroll
      for (int j = 0; j < COUNT; j++) acc[j] += in[j + kw] * tap[kw];
  }
}

// ---- Products
// How WARPS warps share a product: its depth, and its columns.
__host__ __device__ constexpr int depth_shares(int high, int depth) {
  return smaller(larger(1, WARPS / (high / 16)), depth / 16);
}
__host__ __device__ constexpr int column_shares(int high, int cols, int depth) { return cols / 8 > 6 ? 2 : 1; }

// A matrix [LINES_ALL, DEPTH] times a factor for each element of the depth, in place: of rows and
// weights those that are fewer.
template <int LINES_ALL, int DEPTH, int PITCH> __device__ __forceinline__ void scale(T* matrix, const float* factor) {
  constexpr int VECTORS = DEPTH / 8;
  for (int i = threadIdx.x; i < LINES_ALL * VECTORS; i += THREADS) {
    uint4* at = (uint4*)(matrix + i / VECTORS * PITCH + i % VECTORS * 8);
    Eight value = widened(*at);
#pragma unroll
    for (int q = 0; q < 2; q++) {
      const float4 f = ((const float4*)(factor + i % VECTORS * 8))[q];
      value.v[4 * q] *= f.x, value.v[4 * q + 1] *= f.y, value.v[4 * q + 2] *= f.z, value.v[4 * q + 3] *= f.w;
    }
    *at = narrowed(value);
  }
}

// acc[j] += 16 rows times eight rows of the weights, those of block `block0` + j, over steps of 16 of the depth.
template <int BLOCKS_N, int COLS, int PITCH>
__device__ __forceinline__ void accumulate(float (&acc)[BLOCKS_N][4], const T* rows, const T* weights, int block0,
                                           int begin, int end) {
  const int lane = threadIdx.x % 32;
  const T* a_from = rows + lane % 16 * PITCH + lane / 16 * 8;
  const T* b_from = weights + lane % 8 * PITCH + lane / 8 % 2 * 8;
#pragma unroll 4
  for (int step = begin; step < end; step++) {
    u32 a[4];
    ldmatrix_x4(a, a_from + 16 * step);
#pragma unroll
    for (int j = 0; j < BLOCKS_N; j += 2) {
      const bool two = j + 1 < BLOCKS_N;
      // the last share may have a block less: it repeats one
      const int n = min(block0 + j + (two ? lane / 16 : 0), COLS / 8 - 1);
      if (two) {
        u32 b[4];
        ldmatrix_x4(b, b_from + 8 * n * PITCH + 16 * step);
        mma_16816<T>(acc[j], a, b[0], b[1]);
        mma_16816<T>(acc[j + 1 < BLOCKS_N ? j + 1 : j], a, b[2], b[3]);
      } else {
        u32 b[2];
        ldmatrix_x2(b, b_from + 8 * n * PITCH + 16 * step);
        mma_16816<T>(acc[j], a, b[0], b[1]);
      }
    }
  }
}

// sums[share][HIGH][COLS + 4] = the share of each part of the depth in rows [HIGH, DEPTH]
// times weights [COLS, DEPTH]^T.
template <int HIGH, int COLS, int DEPTH, int PITCH, int SHARES_K>
__device__ __forceinline__ void multiply(float* sums, const T* rows, const T* weights) {
  constexpr int STEPS = DEPTH / 16, COLUMN_SHARES = column_shares(HIGH, COLS, DEPTH),
                BLOCKS_N = cover(COLS / 8, COLUMN_SHARES), ITEMS = HIGH / 16 * COLUMN_SHARES * SHARES_K;
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int item = threadIdx.x / 32; item < ITEMS; item += WARPS) {
    const int high = item % (HIGH / 16), column_share = item / (HIGH / 16) % COLUMN_SHARES,
              share = item / (HIGH / 16 * COLUMN_SHARES);
    float acc[BLOCKS_N][4];
#pragma unroll
    for (int j = 0; j < BLOCKS_N; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[j][e] = 0.f;
    const int block0 = column_share * BLOCKS_N;
    accumulate<BLOCKS_N, COLS, PITCH>(acc, rows + 16 * high * PITCH, weights, block0, share * STEPS / SHARES_K,
                                      (share + 1) * STEPS / SHARES_K);
    float* to = sums + (share * HIGH + 16 * high + lane / 4) * (COLS + 4) + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < BLOCKS_N; j++) {
      if (block0 + j >= COLS / 8) break;
      *(float2*)(to + 8 * (block0 + j)) = make_float2(acc[j][0], acc[j][1]);
      *(float2*)(to + 8 * (block0 + j) + 8 * (COLS + 4)) = make_float2(acc[j][2], acc[j][3]);
    }
  }
}

// Eight columns of a row, the shares added up.
template <int HIGH, int COLS, int SHARES_K>
__device__ __forceinline__ Eight sum_of(const float* sums, int row, int col) {
  Eight sum = {};
#pragma unroll
  for (int share = 0; share < SHARES_K; share++)
#pragma unroll
    for (int q = 0; q < 2; q++) {
      const float4 a = ((const float4*)(sums + (share * HIGH + row) * (COLS + 4) + col))[q];
      sum.v[4 * q] += a.x, sum.v[4 * q + 1] += a.y, sum.v[4 * q + 2] += a.z, sum.v[4 * q + 3] += a.w;
    }
  return sum;
}

// ---- All thread blocks wait for each other: the launch is cooperative, so that all of them run. What a
// block wrote before it arrived is visible after the wait by loads that pass the L1 cache. Two halves, so
// that work can stand between them.
__device__ __forceinline__ void grid_arrive(u32* arrived) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(arrived, 1u);
  }
}
__device__ __forceinline__ void grid_wait(const u32* arrived, u32 target) {
  if (threadIdx.x == 0)
    while (load_acquire(arrived) < target) {}
  __syncthreads();
}
// Behind the last wait, at `target`: the last block to leave puts the counter back to 0,
// for the launch that comes next.
__device__ __forceinline__ void grid_leave(u32* arrived, u32 target) {
  if (threadIdx.x == 0 && atomicAdd(arrived, 1u) == target + gridDim.x - 1) *arrived = 0;
}
