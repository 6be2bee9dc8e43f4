// GELU and GRN backwards, a map at a time: what a feed-forward's backward pass does between its products, see kernels/feed_forward/
// gpu_backward.py. The blocks of a cluster share an image, COLS hidden channels each, whose values they keep in registers from the first
// sums to the end: the hidden tensor and its gradient are read once. One number for each block passes between them.
//
// Defined from outside: T, COLS, CLUSTER, THREADS, ITEMS (rows of a thread), MIN_BLOCKS.

extern __shared__ unsigned char smem[];

constexpr int GROUPS = COLS / 8, DOWN = THREADS / GROUPS;  // a thread owns eight columns of every DOWN-th row

#if CLUSTER > 1
#define CLUSTERS __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTERS
#endif

// The normal distribution function within 4.2e-6, as in kernels/feed_forward/gpu_kernels.py.
__device__ __forceinline__ float normal(float x) {
  const float near = fminf(fmaxf(x, -4.5f), 4.5f), square = near * near - 10.125f;
  float value = square * -1.62840143e-12f + 4.49560907e-11f;
  value = value * square - 5.76862109e-10f;
  value = value * square + 8.95420455e-9f;
  value = value * square - 1.72314548e-7f;
  value = value * square + 2.7462706e-6f;
  value = value * square - 3.87995799e-5f;
  value = value * square + 0.000532959166f;
  value = value * square - 0.0076230724f;
  value = value * square + 0.156906069f;
  return near * value + 0.5f;
}

__device__ __forceinline__ void unpack(float (&to)[8], const uint4& v) {
  const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int e = 0; e < 4; e++) to[2 * e] = lo_float<T>(words[e]), to[2 * e + 1] = hi_float<T>(words[e]);
}

__device__ __forceinline__ uint4 pack(const float (&v)[8]) {
  return make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7]));
}

// The compiler shall compute anew what it made of a value: kept from one loop to the next, it would take the registers of others.
__device__ __forceinline__ void forget(int& value) { asm volatile("" : "+r"(value)); }
__device__ __forceinline__ void forget(uint4& v) { asm volatile("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)); }

// What each thread has of its eight columns, to `sums`, [DOWN, COLS].
__device__ __forceinline__ void spread(float* sums, const float (&values)[8]) {
  if ((int)threadIdx.x < GROUPS * DOWN) {
    float4* to = (float4*)(sums + threadIdx.x / GROUPS * COLS + threadIdx.x % GROUPS * 8);
    to[0] = make_float4(values[0], values[1], values[2], values[3]), to[1] = make_float4(values[4], values[5], values[6], values[7]);
  }
  __syncthreads();
}

__device__ __forceinline__ float down_column(const float* sums, int column) {
  float sum = 0.f;
#pragma unroll 5
  for (int d = 0; d < DOWN; d++) sum += sums[d * COLS + column];
  return sum;
}

// hidden, before its GELU, and grad, that of GRN's output: [images, size, n]; factor, norm, [images, n]; gamma, beta (or null), [n]. To
// grown = gelu(hidden) * factor + beta; grad = the gradient of hidden; grad_gamma and grad_b1, [images, n], of each image.
extern "C" __global__ void CLUSTERS __launch_bounds__(THREADS, MIN_BLOCKS)
    grn_backward(const T* __restrict__ hidden, T* grad, const T* __restrict__ factor, const T* __restrict__ beta, const float* __restrict__ norm,
                 const T* __restrict__ gamma, T* __restrict__ grown, float* __restrict__ grad_gamma, float* __restrict__ grad_b1, int size, int n, float eps) {
  float *sums = (float*)smem, *pulls = sums + DOWN * COLS, *norms = pulls + COLS, *shares = norms + COLS, *totals = shares + 2;
  const int image = blockIdx.x / CLUSTER, column0 = blockIdx.x % CLUSTER * COLS, own = column0 + threadIdx.x % GROUPS * 8, down = threadIdx.x / GROUPS;
  const int lane = threadIdx.x % 32, column = threadIdx.x;
  const i64 of_image = (i64)image * n;
  const bool owns = down < DOWN;
  hidden += of_image * size + own, grad += of_image * size + own, grown += of_image * size + own;
  int step = n;
  uint4 h[ITEMS], g[ITEMS];
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const int row = down + i * DOWN;
    const bool there = owns && row < size;
    h[i] = there ? __ldg((const uint4*)(hidden + row * step)) : make_uint4(0, 0, 0, 0);
    g[i] = there ? *(const uint4*)(grad + row * step) : make_uint4(0, 0, 0, 0);
  }
  forget(step);
  const uint4 factors = __ldg((const uint4*)(factor + of_image + own)), betas = beta ? __ldg((const uint4*)(beta + own)) : make_uint4(0, 0, 0, 0);
  float found[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const int row = down + i * DOWN;
    float x[8], dy[8], f[8], b[8];
    unpack(x, h[i]), unpack(dy, g[i]), unpack(f, factors), unpack(b, betas);
#pragma unroll
    for (int e = 0; e < 8; e++) {
      const float active = x[e] * normal(x[e]);
      found[e] += active * dy[e];
      x[e] = active * f[e] + b[e];
    }
    if (owns && row < size) *(uint4*)(grown + row * step) = pack(x);
  }
  forget(step);
  spread(sums, found);
  float along = 0.f, length = 0.f, strength = 0.f;
  if (column < COLS) {
    along = down_column(sums, column), length = norm[of_image + column0 + column], strength = to_float(gamma[column0 + column]) * along;
    pulls[column] = strength * length, norms[column] = length;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    float pushed = 0.f, lengths = 0.f;
    for (int c = lane; c < COLS; c += 32) pushed += pulls[c], lengths += norms[c];
#pragma unroll
    for (int mask = 16; mask; mask /= 2) pushed += shfl_xor(pushed, mask), lengths += shfl_xor(lengths, mask);
    if (lane == 0) shares[0] = pushed, shares[1] = lengths;
  }
  cluster_sync();
  if (threadIdx.x < 32) {
    float pushed = lane < CLUSTER ? cluster_load(shares, lane) : 0.f, lengths = lane < CLUSTER ? cluster_load(shares + 1, lane) : 0.f;
#pragma unroll
    for (int mask = 16; mask; mask /= 2) pushed += shfl_xor(pushed, mask), lengths += shfl_xor(lengths, mask);
    if (lane == 0) totals[0] = pushed, totals[1] = lengths;
  }
  cluster_sync();                                          // nobody reads another's shared memory after this
  if (column < COLS) {
    const float scale = totals[1] / n + eps, shared = totals[0] / n / scale;
    pulls[column] = length > 0.f ? (strength - shared) / scale / length : 0.f;
    grad_gamma[of_image + column0 + column] = along * length / scale;
  }
  __syncthreads();
  float pull[8];
#pragma unroll
  for (int e = 0; e < 8; e++) pull[e] = pulls[threadIdx.x % GROUPS * 8 + e], found[e] = 0.f;
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const int row = down + i * DOWN;
    float x[8], dy[8], f[8];
    forget(h[i]), forget(g[i]);
    unpack(x, h[i]), unpack(dy, g[i]), unpack(f, factors);
#pragma unroll
    for (int e = 0; e < 8; e++) {
      const float below = normal(x[e]), slope = below + x[e] * exp2_fast(-0.72134752f * x[e] * x[e]) * 0.39894228f;
      x[e] = (dy[e] * f[e] + x[e] * below * pull[e]) * slope;
      found[e] += x[e];
    }
    if (owns && row < size) *(uint4*)(grad + row * step) = pack(x);
  }
  spread(sums, found);
  if (column < COLS) grad_b1[of_image + column0 + column] = down_column(sums, column);
}
