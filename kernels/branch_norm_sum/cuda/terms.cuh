// The terms of a sum of branches, as branches.cu has them. Defined at compile time: T, W, TERMS, KERNELS, DILATIONS.

extern __shared__ unsigned char smem[];

constexpr int KERNEL[] = KERNELS, DILATION[] = DILATIONS, WINDOW = KERNEL[0], REACH = WINDOW / 2;

__host__ __device__ constexpr int taps_before(int term) {
  int taps = 0;
  for (int t = 0; t < term; t++) taps += KERNEL[t] * KERNEL[t];
  return taps;
}
constexpr int ALL_TAPS = taps_before(TERMS);

// A channel's taps of all terms, rounded as the convolution takes them, by the whole block, which
// must wait before it reads them.
__device__ __forceinline__ void load_taps(float* taps, const W* const (&w)[6], int channel) {
  for (int i = threadIdx.x; i < ALL_TAPS; i += blockDim.x) {
    const W* from = w[0] + (i64)channel * (KERNEL[0] * KERNEL[0]) + i;
#pragma unroll
    for (int t = 1; t < TERMS; t++)
      if (i >= taps_before(t)) from = w[t] + (i64)channel * (KERNEL[t] * KERNEL[t]) + i - taps_before(t);
    taps[i] = to_float(from_float<T>(to_float(__ldg(from))));
  }
}

constexpr int PLACES = WINDOW * WINDOW;                   // of the window

// A tap, rounded as the convolution takes it, to where it stands in the window of its term of k x k taps, d apart.
__device__ __forceinline__ void load_tap(float* window, const W* from, int tap, int k, int d) {
  const int row = tap / k, column = tap - row * k, edge = REACH - k / 2 * d;
  window[(edge + row * d) * WINDOW + edge + column * d] = to_float(from_float<T>(to_float(__ldg(from + tap))));
}

// A channel's taps of all terms, each term's where they stand in the window and zeros between them, so that the same
// few instructions find those of every term. By the whole block, which must wait before it reads them. [TERMS][PLACES]
__device__ __forceinline__ void load_windows(float* windows, const W* const (&w)[6], int channel) {
#pragma unroll 1
  for (int i = threadIdx.x; i < TERMS * PLACES; i += blockDim.x) windows[i] = 0.f;
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < ALL_TAPS; i += blockDim.x) {
    const W* from = w[0];
    int k = KERNEL[0], d = DILATION[0], term = 0, before = 0;
#pragma unroll
    for (int t = 1; t < TERMS; t++)
      if (i >= taps_before(t)) from = w[t], k = KERNEL[t], d = DILATION[t], term = t, before = taps_before(t);
    load_tap(windows + term * PLACES, from + (i64)channel * k * k, i - before, k, d);
  }
}

// What stands in a window at that place, from its centre.
__device__ __forceinline__ float at_place(const float* window, int row, int column) {
  const bool there = (u32)(row + REACH) < WINDOW && (u32)(column + REACH) < WINDOW;
  return there ? window[(row + REACH) * WINDOW + column + REACH] : 0.f;
}
