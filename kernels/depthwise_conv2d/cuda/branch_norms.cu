// What lies between the passes of branches.cu: a channel's batch norms, from sums that blocks left, a
// block a channel. All in float32.
//
// Defined at compile time: T, W, TERMS, KERNELS, DILATIONS as for branches.cu, THREADS.

extern __shared__ unsigned char smem[];

constexpr int KERNEL[] = KERNELS, DILATION[] = DILATIONS, WINDOW = KERNEL[0];

// The sum over parts of values[part][c][count] at `i`; always in the same order.
__device__ __forceinline__ float over_parts(const float* values, int parts, i64 step, int i) {
  float sum = 0.f;
#pragma unroll 4
  for (int p = 0; p < parts; p++) sum += values[p * step + i];
  return sum;
}

// Where tap i of a term lies in the window of the first.
__device__ __forceinline__ int in_window(int term, int i) {
  const int k = KERNEL[term], d = DILATION[term], first = WINDOW / 2 - k / 2 * d;
  return (first + i / k * d) * WINDOW + first + i % k * d;
}

__device__ __forceinline__ int all_taps() {
  int taps = 0;
  for (int t = 0; t < TERMS; t++) taps += KERNEL[t] * KERNEL[t];
  return taps;
}

#ifdef MERGE
// Statistics, the merged kernel and its bias. sums: [parts, c, count], to kept[c, count];
// moments: [parts, TERMS, 2, c].
extern "C" __global__ void __launch_bounds__(THREADS)
    merge(const float* __restrict__ sums, const float* __restrict__ moments, const W* w0, const W* w1, const W* w2,
          const W* w3, const W* w4, const W* w5, const float* __restrict__ scale, const float* __restrict__ shift,
          float* __restrict__ kept, float* __restrict__ means, float* __restrict__ variances, T* __restrict__ merged,
          T* __restrict__ bias, int c, int parts, int count, float cells, float eps) {
  const W* w[6] = {w0, w1, w2, w3, w4, w5};
  float *window = (float*)smem, *factors = window + WINDOW * WINDOW, *shifts = factors + TERMS;
  const int channel = blockIdx.x, term = threadIdx.x;
  for (int i = threadIdx.x; i < count; i += THREADS)
    kept[(i64)channel * count + i] = over_parts(sums + (i64)channel * count, parts, (i64)c * count, i);
  for (int i = threadIdx.x; i < WINDOW * WINDOW; i += THREADS) window[i] = 0.f;
  if (term < TERMS) {
    const float mean = over_parts(moments + channel, parts, (i64)TERMS * 2 * c, 2 * term * c) / cells;
    const float variance =
        fmaxf(over_parts(moments + channel, parts, (i64)TERMS * 2 * c, (2 * term + 1) * c) / cells - mean * mean, 0.f);
    const float factor = scale[term * c + channel] / sqrtf(variance + eps);
    means[term * c + channel] = mean, variances[term * c + channel] = variance;
    factors[term] = factor, shifts[term] = shift[term * c + channel] - mean * factor;
  }
  __syncthreads();
#pragma unroll
  for (int t = 0; t < TERMS; t++) {
    const int taps = KERNEL[t] * KERNEL[t];
    for (int i = threadIdx.x; i < taps; i += THREADS)
      window[in_window(t, i)] += factors[t] * to_float(from_float<T>(to_float(w[t][(i64)channel * taps + i])));
    __syncthreads();
  }
  for (int i = threadIdx.x; i < WINDOW * WINDOW; i += THREADS)
    merged[(i64)channel * (WINDOW * WINDOW) + i] = from_float<T>(window[i]);
  if (threadIdx.x == 0) {
    float sum = 0.f;
    for (int t = 0; t < TERMS; t++) sum += shifts[t];
    bias[channel] = from_float<T>(sum);
  }
}
#endif

#ifdef SETTLE
// What the gradient of each term is made of (along, own, constant: [TERMS, c]), and the gradients of weights and norms.
// window_gradient: [parts, c, WINDOW * WINDOW], of a kernel as large as the window; pushed: [rows, c], the sums of gy.
extern "C" __global__ void __launch_bounds__(THREADS)
    settle(const float* __restrict__ window_gradient, const float* __restrict__ pushed, const W* w0, const W* w1,
           const W* w2, const W* w3, const W* w4, const W* w5, const float* __restrict__ scale,
           const float* __restrict__ kept, const float* __restrict__ means, const float* __restrict__ variances,
           float* __restrict__ along, float* __restrict__ own, float* __restrict__ constant,
           float* __restrict__ grad_scale, float* __restrict__ grad_shift, W* d0, W* d1, W* d2, W* d3, W* d4, W* d5,
           int c, int parts, int rows, int count, float cells, float eps) {
  const W* w[6] = {w0, w1, w2, w3, w4, w5};
  W* d[6] = {d0, d1, d2, d3, d4, d5};
  // of_terms: [TERMS, 3]
  float *window = (float*)smem, *shares = window + WINDOW * WINDOW, *of_terms = shares + THREADS / 32;
  const int channel = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  constexpr int TAPS = WINDOW * WINDOW;
  for (int i = threadIdx.x; i < TAPS; i += THREADS)
    window[i] = over_parts(window_gradient + (i64)channel * TAPS, parts, (i64)c * TAPS, i);
  float share = 0.f;
  for (int r = threadIdx.x; r < rows; r += THREADS) share += pushed[(i64)r * c + channel];
#pragma unroll
  for (int mask = 16; mask; mask /= 2) share += shfl_xor(share, mask);
  if (lane == 0) shares[warp] = share;
  __syncthreads();
  float total = 0.f;
  for (int i = 0; i < THREADS / 32; i++) total += shares[i];
  // of each norm its own, though they are the same
  if (threadIdx.x < TERMS) grad_shift[threadIdx.x * c + channel] = total;
#pragma unroll
  for (int t = 0; t < TERMS; t++) {
    if (warp != t % (THREADS / 32)) continue;
    const int taps = KERNEL[t] * KERNEL[t], at = t * c + channel;
    float product = 0.f;
    for (int i = lane; i < taps; i += 32)
      product += window[in_window(t, i)] * to_float(from_float<T>(to_float(w[t][(i64)channel * taps + i])));
#pragma unroll
    for (int mask = 16; mask; mask /= 2) product += shfl_xor(product, mask);
    if (lane == 0) {
      const float rate = 1.f / sqrtf(variances[at] + eps), slope = scale[at] * rate,
                  centred = product - means[at] * total;
      const float pull = -slope * rate * rate * centred / cells, rest = -slope * total / cells - pull * means[at];
      grad_scale[at] = centred * rate;
      along[at] = of_terms[3 * t] = slope, own[at] = of_terms[3 * t + 1] = pull,
      constant[at] = of_terms[3 * t + 2] = rest;
    }
  }
  __syncthreads();
  const float *outputs = kept + (i64)channel * count, *seen = outputs + all_taps();
#pragma unroll
  for (int t = 0; t < TERMS; t++) {
    const int taps = KERNEL[t] * KERNEL[t];
    for (int i = threadIdx.x; i < taps; i += THREADS) {
      const int place = in_window(t, i);
      d[t][(i64)channel * taps + i] = from_float<W>(of_terms[3 * t] * window[place] + of_terms[3 * t + 1] * outputs[i] +
                                                    of_terms[3 * t + 2] * seen[place]);
    }
    outputs += taps;
  }
}
#endif

#ifdef COLUMN_SUMS
// Sums of gy, rows of c channels, eight channels a thread: partial[block][c].
extern "C" __global__ void __launch_bounds__(THREADS)
    column_sums(const T* __restrict__ gy, float* __restrict__ partial, i64 rows, int c) {
  float* found = (float*)smem;                           // [THREADS][8]
  for (int first = 0; first < c / 8; first += THREADS) {
    const int across = min(c / 8 - first, THREADS), down = THREADS / across, at = threadIdx.x / across,
              channel = 8 * (first + threadIdx.x % across);
    float sum[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
    const i64 step = (i64)gridDim.x * down;
#pragma unroll 4
    for (i64 row = (i64)blockIdx.x * down + at; row < rows && at < down; row += step) {
      const uint4 v = __ldg((const uint4*)(gy + row * c + channel));
      const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int e = 0; e < 4; e++) sum[2 * e] += lo_float<T>(words[e]), sum[2 * e + 1] += hi_float<T>(words[e]);
    }
#pragma unroll
    for (int e = 0; e < 8; e++) found[8 * threadIdx.x + e] = sum[e];
    __syncthreads();
    for (int i = threadIdx.x; i < 8 * across; i += THREADS) {
      float total = 0.f;
      for (int r = 0; r < down; r++) total += found[8 * across * r + i];
      partial[(i64)blockIdx.x * c + 8 * first + i] = total;
    }
    __syncthreads();
  }
}
#endif
