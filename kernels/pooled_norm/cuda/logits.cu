// A classifier's head for few images in one launch: the mean of a map over its cells, the layer norm of that, and its
// products with the rows of a matrix.
//
// A thread block takes eight rows of the matrix, a warp each, and computes mean and norm of its image by itself: that
// is 63 KB from the L2 cache for 640 channels of 7x7, all requested at once, and takes less time than another launch
// would. The rows are requested first.
//
// Defined at compile time: T, CELLS, CHANNELS, ROWS (of the matrix), THREADS, SHARED_BYTES.

extern __shared__ unsigned char smem[];

__host__ __device__ constexpr int cover(int n, int by) { return (n + by - 1) / by; }

constexpr int C = CHANNELS, OCTETS = C / 8, PARTS = THREADS / OCTETS > 1 ? THREADS / OCTETS : 1, WARPS = THREADS / 32,
              EACH = cover(OCTETS, 32), CHANNELS_EACH = cover(C, THREADS);
constexpr int AT_SUMS = 0, AT_SMALL = AT_SUMS + 4 * PARTS * C, BYTES = AT_SMALL + 4 * 2 * WARPS;
static_assert(BYTES == SHARED_BYTES, "gpu_logits.py counts otherwise");
static_assert(C % 8 == 0, "sizes");

// Of all threads; `small` is a place of its own for each call.
__device__ __forceinline__ float over_block(float sum, float* small) {
#pragma unroll
  for (int mask = 16; mask; mask /= 2) sum += shfl_xor(sum, mask);
  if (threadIdx.x % 32 == 0) small[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0.f;
#pragma unroll
  for (int i = 0; i < WARPS; i++) sum += small[i];
  return sum;
}

__device__ __forceinline__ void add(float (&sum)[8], uint4 a) {
  const u32 pairs[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
  for (int q = 0; q < 4; q++) sum[2 * q] += lo_float<T>(pairs[q]), sum[2 * q + 1] += hi_float<T>(pairs[q]);
}

// x: channels-last [images][CELLS][C]; matrix: [ROWS][C]; offsets may be null.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pooled_logits(const T* __restrict__ x, const T* __restrict__ gain, const T* __restrict__ bias,
                  const T* __restrict__ matrix, const T* __restrict__ offsets, T* out, float eps) {
  overlap_launches();
  constexpr int GROUPS = cover(ROWS, WARPS);
  const int image = blockIdx.x / GROUPS, row = blockIdx.x % GROUPS * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
  float *sums = (float*)(smem + AT_SUMS), *small = (float*)(smem + AT_SMALL);
  uint4 weights[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++)
    weights[i] = row < ROWS && lane + 32 * i < OCTETS ? __ldg((const uint4*)(matrix + (i64)row * C) + lane + 32 * i)
                                                      : make_uint4(0, 0, 0, 0);
  // asked for now, since memory takes as long as all that comes before they are needed
  T gains[CHANNELS_EACH], biases[CHANNELS_EACH];
#pragma unroll
  for (int i = 0; i < CHANNELS_EACH; i++) {
    const int channel = threadIdx.x + i * THREADS < C ? threadIdx.x + i * THREADS : 0;
    gains[i] = gain[channel], biases[i] = bias[channel];
  }
  const float offset = offsets && row < ROWS ? to_float(offsets[row]) : 0.f;
  for (int item = threadIdx.x; item < OCTETS * PARTS; item += THREADS) {
    const int octet = item % OCTETS, part = item / OCTETS;
    const uint4* from = (const uint4*)(x + (i64)image * CELLS * C) + octet;
    float sum[8] = {};
#pragma unroll 20
    for (int cell = part; cell < CELLS; cell += PARTS) add(sum, __ldg(from + cell * OCTETS));
#pragma unroll
    for (int e = 0; e < 8; e++) sums[part * C + 8 * octet + e] = sum[e];
  }
  __syncthreads();
  float total = 0.f;
  for (int channel = threadIdx.x; channel < C; channel += THREADS) {
    float sum = 0.f;
#pragma unroll
    for (int part = 0; part < PARTS; part++) sum += sums[part * C + channel];
    total += sums[channel] = sum * (1.f / CELLS);
  }
  const float mean = over_block(total, small) * (1.f / C);
  total = 0.f;
  for (int channel = threadIdx.x; channel < C; channel += THREADS) {
    const float centred = sums[channel] - mean;
    total += centred * centred;
  }
  const float scale = rsqrtf(over_block(total, small + WARPS) * (1.f / C) + eps);
#pragma unroll
  for (int i = 0; i < CHANNELS_EACH; i++) {
    const int channel = threadIdx.x + i * THREADS;
    if (channel >= C) break;
    const float normed = (sums[channel] - mean) * scale * to_float(gains[i]) + to_float(biases[i]);
    sums[channel] = to_float(from_float<T>(normed));     // rounded, as a launch of its own would leave it
  }
  __syncthreads();
  float logit = 0.f;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    if (lane + 32 * i >= OCTETS) break;
    const float4 *values = (const float4*)(sums + 8 * (lane + 32 * i)), low = values[0], high = values[1];
    logit += lo_float<T>(weights[i].x) * low.x + hi_float<T>(weights[i].x) * low.y + lo_float<T>(weights[i].y) * low.z +
             hi_float<T>(weights[i].y) * low.w;
    logit += lo_float<T>(weights[i].z) * high.x + hi_float<T>(weights[i].z) * high.y +
             lo_float<T>(weights[i].w) * high.z + hi_float<T>(weights[i].w) * high.w;
  }
#pragma unroll
  for (int mask = 16; mask; mask /= 2) logit += shfl_xor(logit, mask);
  if (lane == 0 && row < ROWS) out[(i64)image * ROWS + row] = from_float<T>(logit + offset);
}
