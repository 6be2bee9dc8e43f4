// Sum of the partial weight gradients, always in the same order, so that two runs agree to the bit. A warp takes 32 weights, or `share`
// warps of a block of threads take the same ones and share their parts.
extern __shared__ unsigned char smem[];

extern "C" __global__ void __launch_bounds__(1024) reduce(const float* __restrict__ partial, T* __restrict__ out, i64 count, int splits, int share) {
  overlap_launches();
  float* scratch = (float*)smem;                         // [warps][32]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, rank = warp % share;
  const i64 i = ((i64)blockIdx.x * (blockDim.x / 32 / share) + warp / share) * 32 + lane;
  float sum = 0.f;
  if (i < count) {
#pragma unroll 8
    for (int s = rank; s < splits; s += share) sum += partial[s * count + i];
  }
  if (share > 1) {
    scratch[warp * 32 + lane] = sum;
    __syncthreads();
    if (rank != 0) return;
    sum = 0.f;
    for (int s = 0; s < share; s++) sum += scratch[(warp + s) * 32 + lane];
  }
  if (i < count) out[i] = from_float<T>(sum);
}
