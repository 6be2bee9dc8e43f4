// The terms of a sum of branches, as branches.cu has them. Defined from outside: T, W, TERMS, KERNELS, DILATIONS.

extern __shared__ unsigned char smem[];

constexpr int KERNEL[] = KERNELS, DILATION[] = DILATIONS, WINDOW = KERNEL[0], REACH = WINDOW / 2;

__host__ __device__ constexpr int taps_before(int term) {
  int taps = 0;
  for (int t = 0; t < term; t++) taps += KERNEL[t] * KERNEL[t];
  return taps;
}
constexpr int ALL_TAPS = taps_before(TERMS);

// A channel's taps of all terms, rounded as the convolution takes them, by the whole block, which must wait before it reads them.
__device__ __forceinline__ void load_taps(float* taps, const W* const (&w)[6], int channel) {
  for (int i = threadIdx.x; i < ALL_TAPS; i += blockDim.x) {
    const W* from = w[0] + (i64)channel * (KERNEL[0] * KERNEL[0]) + i;
#pragma unroll
    for (int t = 1; t < TERMS; t++)
      if (i >= taps_before(t)) from = w[t] + (i64)channel * (KERNEL[t] * KERNEL[t]) + i - taps_before(t);
    taps[i] = to_float(from_float<T>(to_float(__ldg(from))));
  }
}
