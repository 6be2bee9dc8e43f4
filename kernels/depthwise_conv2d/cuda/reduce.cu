// Sum of the partial weight gradients, always in the same order, so that two runs agree to the bit. A block takes 32 weights; its
// warps share the partial sums.
extern __shared__ unsigned char smem[];

extern "C" __global__ void __launch_bounds__(1024) reduce(const float* __restrict__ partial, T* __restrict__ out, i64 count, int splits) {
  overlap_launches();
  float* scratch = (float*)smem;                         // [warps][32]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const i64 i = (i64)blockIdx.x * 32 + lane;
  float sum = 0.f;
  if (i < count) {
#pragma unroll 8
    for (int s = warp; s < splits; s += warps) sum += partial[s * count + i];
  }
  scratch[warp * 32 + lane] = sum;
  __syncthreads();
  if (warp != 0 || i >= count) return;
  sum = 0.f;
  for (int s = 0; s < warps; s++) sum += scratch[s * 32 + lane];
  out[i] = from_float<T>(sum);
}
