// Sum of the partial weight gradients, always in the same order, so that two runs agree bit for bit. A warp
// takes 32 weights; SHARE warps of a thread block take the same ones and share their parts, of which
// TOGETHER are in flight at once.
//
// Defined at compile time: T, SHARE, TOGETHER.
extern __shared__ unsigned char smem[];

extern "C" __global__ void __launch_bounds__(256)
    reduce(const float* __restrict__ partial, T* __restrict__ out, i64 count, int splits) {
  overlap_launches();
  float* scratch = (float*)smem;                         // [warps][32]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, rank = warp % SHARE;
  const i64 i = ((i64)blockIdx.x * (blockDim.x / 32 / SHARE) + warp / SHARE) * 32 + lane;
  float sum = 0.f;
#pragma unroll 1
  for (int first = rank; first < splits; first += SHARE * TOGETHER) {
    float part[TOGETHER];
#pragma unroll
    for (int s = 0; s < TOGETHER; s++)
      part[s] = i < count && first + s * SHARE < splits ? partial[(first + s * SHARE) * count + i] : 0.f;
#pragma unroll
    for (int s = 0; s < TOGETHER; s++) sum += part[s];
  }
  if constexpr (SHARE > 1) {
    scratch[warp * 32 + lane] = sum;
    __syncthreads();
    if (rank != 0) return;
#pragma unroll
    for (int s = 1; s < SHARE; s++) sum += scratch[(warp + s) * 32 + lane];
  }
  if (i < count) out[i] = from_float<T>(sum);
}
