// Weight gradient of a depthwise 3x3 convolution on channels-last maps of at most eight columns, Hopper and later, in
// one launch. octets.cuh says how.
//
// A cluster of RANKS blocks takes G octets of channels of all images, SLOTS at a time, and its first one adds up the
// sums of all, always in the same order. The warps of a block share the images: G of them, one an octet, order and wait
// for images of their own, in STAGES places, so that nobody waits for the block.
//
// Defined at compile time: STAGES (of each sharer), RANKS, and what octets.cuh needs, with one
// octet of columns and whole maps.

static_assert(NO == 1 && WHOLE && PX == PG, "strips are whole maps of one octet of columns");

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    weight_gradient(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap gy, void* __restrict__ out,
                    int n, int c, int, int, int wide) {
  const int group = blockIdx.x / RANKS, rank = blockIdx.x % RANKS, jobs = (n + SLOTS - 1) / SLOTS;
  const int warp = uniform(threadIdx.x / 32), octet = warp % G, sharer = warp / G;
  const bool orders = threadIdx.x % 32 == 0 && octet == 0;
  float* scratch = (float*)(smem + SHARERS * STAGES * PLACE * 16);  // [SHARERS][G][8][9]
  float* others = scratch + SHARERS * G * 72;            // [RANKS - 1][G][8][9], in the first rank
  u64 *arrived = (u64*)(others + (RANKS - 1) * G * 72), *full = arrived + 1 + sharer * STAGES;  // [STAGES]
  uint4* places = (uint4*)smem + sharer * STAGES * PLACE;  // [STAGES]
  const auto order = [&](int k) {                        // the sharer's k-th job
    const int job = rank + (sharer + k * SHARERS) * RANKS;
    if (job >= jobs) return;
    uint4 *to_x = places + k % STAGES * PLACE, *to_g = to_x + (SLOTS * CELLS_X + BEHIND) * G;
    expect_bytes(full + k % STAGES, SLOTS * (CELLS_X + CELLS_G) * G * 16);
    tensor_copy<ROWS, PX, G, SLOTS>(to_x, x, group * G * 8, -1, 0, job * SLOTS, full + k % STAGES);
    tensor_copy<TH, PG, G, SLOTS>(to_g, gy, group * G * 8, 0, 0, job * SLOTS, full + k % STAGES);
  };
  if (orders) {
    fetch_map(x), fetch_map(gy);
    for (int s = 0; s < STAGES; s++) make_bytes_barrier(full + s);
  }
  if (threadIdx.x == 0) {
    make_bytes_barrier(arrived);
    if (RANKS > 1) expect_bytes(arrived, (RANKS - 1) * G * 72 * 4);
  }
  make_zeros((uint4*)smem, SHARERS * STAGES);
  __syncthreads();
#if RANKS > 1
  cluster_arrive();                                      // waited for before anything is pushed
#endif
  overlap_launches();
  if (orders)
#pragma unroll 1
    for (int k = 0; k < STAGES; k++) order(k);
  Sums sums;
#pragma unroll 1
  for (int k = 0; rank + (sharer + k * SHARERS) * RANKS < jobs; k++) {
    wait_bytes(full + k % STAGES, k / STAGES);
#pragma unroll 1
    for (int pair = 0; pair < PAIRS; pair++) sums.add(places + k % STAGES * PLACE, pair, octet);
    if (rank + (sharer + (k + STAGES) * SHARERS) * RANKS >= jobs) continue;
    sync_some<32 * G>(sharer);
    if (orders) order(k + STAGES);
    sync_some<32 * G>(sharer);
  }
  sums.put(scratch + warp * 72);
  __syncthreads();
#if RANKS > 1
  cluster_wait();
#endif
  const int first = group * G * 72, count = min(G * 72, 9 * c - first);
#pragma unroll 1
  for (int i = threadIdx.x; i < G * 72; i += 32 * WARPS) {
    float sum = 0.f;
#pragma unroll
    for (int s = 0; s < SHARERS; s++) sum += scratch[s * G * 72 + i];
#if RANKS > 1
    if (rank) {
      push_async(others + (rank - 1) * G * 72 + i, 0, sum, arrived);
      continue;
    }
    wait_bytes(arrived, 0);
#pragma unroll
    for (int r = 0; r < RANKS - 1; r++) sum += others[r * G * 72 + i];
#endif
    if (i >= count) return;
    if (wide) ((float*)out)[first + i] = sum;
    else ((T*)out)[first + i] = from_float<T>(sum);
  }
}
