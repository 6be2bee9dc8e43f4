// Weight gradient of a depthwise 3x3 convolution on channels-last maps by the copy engine and the tensor cores of
// Hopper. octets.cuh says how.
//
// A job is G octets of channels of SLOTS strips. One thread orders the boxes of cells of a block's jobs into STAGES
// places in shared memory; what lies outside of the map comes as zeros. The warps of eight channels share the pairs of
// lines of a job. Blocks leave parts, which reduce.cu adds up.
//
// Defined at compile time: STAGES, MIN_BLOCKS, and what octets.cuh needs.

extern "C" __global__ void __launch_bounds__(32 * WARPS, MIN_BLOCKS)
    weight_gradient(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap gy,
                    float* __restrict__ partial, int n, int c, int h, int width, int splits) {
  const int groups = (c / 8 + G - 1) / G, group = blockIdx.x % groups, split = blockIdx.x / groups;
  const int down = (h + TH - 1) / TH, across = (width + PG - 1) / PG, jobs = (n * down * across + SLOTS - 1) / SLOTS;
  // [STAGES], each SLOTS strips of the input, then of the gradient
  uint4* places = (uint4*)smem;
  u64* full = (u64*)(places + STAGES * PLACE);           // [STAGES]
  const auto order = [&](int job, int stage) {
    uint4 *to_x = places + stage * PLACE, *to_g = to_x + (SLOTS * CELLS_X + BEHIND) * G;
    expect_bytes(full + stage, SLOTS * (CELLS_X + CELLS_G) * G * 16);
    if constexpr (WHOLE) {
      tensor_copy<ROWS, PX, G, SLOTS>(to_x, x, group * G * 8, -1, 0, job * SLOTS, full + stage);
      tensor_copy<TH, PG, G, SLOTS>(to_g, gy, group * G * 8, 0, 0, job * SLOTS, full + stage);
    } else {
#pragma unroll 1
      for (int slot = 0; slot < SLOTS; slot++) {         // beyond the last image there are zeros
        const int strip = job * SLOTS + slot, image = strip / (down * across), row = strip / across % down * TH,
                  col = strip % across * PG;
        tensor_copy<ROWS, PX, G, 1>(to_x + slot * CELLS_X * G, x, group * G * 8, col - 1, row - 1, image, full + stage);
        tensor_copy<TH, PG, G, 1>(to_g + slot * CELLS_G * G, gy, group * G * 8, col, row, image, full + stage);
      }
    }
  };
  if (threadIdx.x == 0) {
    fetch_map(x), fetch_map(gy);
    for (int s = 0; s < STAGES; s++) make_bytes_barrier(full + s);
  }
  make_zeros(places, STAGES);
  overlap_launches();
  if (threadIdx.x == 0)
#pragma unroll 1
    for (int s = 0; s < STAGES && split + s * splits < jobs; s++) order(split + s * splits, s);
  __syncthreads();
  const int octet = threadIdx.x / 32 % G, sharer = threadIdx.x / 32 / G;
  Sums sums;
  int stage = 0, round = 0;
#pragma unroll 1
  for (int job = split; job < jobs; job += splits) {
    wait_bytes(full + stage, round);
#pragma unroll 1
    for (int pair = sharer; pair < PAIRS; pair += SHARERS) sums.add(places + stage * PLACE, pair, octet);
    const int next = job + STAGES * splits;
    if (next < jobs) {
      __syncthreads();
      if (threadIdx.x == 0) order(next, stage);
    }
    if (++stage == STAGES) stage = 0, round++;
  }
  __syncthreads();
  float* scratch = (float*)smem;                         // [SHARERS][G][8][9]
  sums.put(scratch + threadIdx.x / 32 * 72);
  __syncthreads();
  const int first = group * G * 72, count = min(G * 72, 9 * c - first);
  for (int i = threadIdx.x; i < count; i += 32 * WARPS) {
    float sum = 0.f;
#pragma unroll
    for (int s = 0; s < SHARERS; s++) sum += scratch[s * G * 72 + i];
    partial[(i64)split * 9 * c + first + i] = sum;
  }
}
