// Weight gradient of a depthwise convolution of maps of up to eight rows and columns in 16-bit types on tensor cores,
// Hopper and later. As depth.cu: images are the depth of the products. The copy engine brings STAGES of a block's jobs,
// eight images each, ahead; eight warps spread the input to planes, eight the gradient.
//
// Defined at compile time: STAGES, SHARED_BYTES, and what small_maps.cuh needs.

constexpr int THREADS = 32 * CB, PAIRS = (KH + 1) / 2;   // pairs of kernel rows
// numbers, of a kernel row: rows of zeros above and below a piece
constexpr int PITCH_OUT = 9, SCRATCH = (8 + 2 * (KW / 2)) * PITCH_OUT;
constexpr int BYTES = STAGES * 2 * STAGE * 2, SUMS_BYTES = CB * 2 * SCRATCH * 4,
              FIRST = (BYTES > SUMS_BYTES ? BYTES : SUMS_BYTES);
static_assert(FIRST + 2 * CB * PLANE * 2 + STAGES * 8 == SHARED_BYTES, "gpu_tiles.py counts otherwise");

// sums[p]: of kernel rows 2p and 2p + 1. A product takes two rows of the gradient, and of the input the two that the
// first kernel row shows them and the two that the second does, of which the middle ones are the same: so many
// products, with other rows of the gradient, need these.
__device__ __forceinline__ void multiply(float (&sums)[PAIRS][4], const T* plane, const T* plane_g) {
  const int lane = threadIdx.x % 32, part = lane / 8, image = lane % 8 * 8;
  u32 g[(TH + 1) / 2 + 1][2];
#pragma unroll
  for (int row = 0; row < TH; row += 4) {
    u32 r[4];
    ldmatrix_x4_trans(r, plane_g + min(row + part, TH - 1) * MATRIX + image);
    g[row / 2][0] = r[0], g[row / 2][1] = row + 1 < TH ? r[1] : 0u, g[row / 2 + 1][0] = r[2],
            g[row / 2 + 1][1] = row + 3 < TH ? r[3] : 0u;
  }
#pragma unroll
  for (int seen = UP % 2 ? -1 : -2; seen < TH; seen += 2) {  // input rows seen, seen + 1, seen + 1, seen + 2
    u32 a[4];
    ldmatrix_x4_trans(a, plane + min(max(seen + (part + 1) / 2, 0), TH - 1) * MATRIX + image);
    if (seen < 0) a[0] = 0u;
    if (seen + 1 < 0 || seen + 1 >= TH) a[1] = a[2] = 0u;
    if (seen + 2 >= TH) a[3] = 0u;
#pragma unroll
    for (int p = 0; p < PAIRS; p++) {
      const int of_g = seen + UP - 2 * p;                // the first of the gradient's two
      if (of_g >= 0 && of_g < TH) mma_16816<T>(sums[p], a, g[of_g / 2][0], g[of_g / 2][1]);
    }
  }
}

// The taps of a channel to out[KH][KW], each the sum of a diagonal. Rows of zeros around the pieces'
// stand for what meets nothing.
__device__ __forceinline__ void put_taps(float* out, const float (&sums)[PAIRS][4], float* scratch) {
  const int lane = threadIdx.x % 32;
  for (int i = lane; i < 2 * SCRATCH; i += 32) scratch[i] = 0.f;
  __syncwarp();
  float* to = scratch + (KW / 2 + lane / 4) * PITCH_OUT + lane % 4 * 2;
#pragma unroll
  for (int p = 0; p < PAIRS; p++) {
    to[0] = sums[p][0], to[1] = sums[p][1], to[SCRATCH] = sums[p][2], to[SCRATCH + 1] = sums[p][3];
    __syncwarp();
    for (int tap = lane; tap < min(2, KH - 2 * p) * KW; tap += 32) {
      const float* from = scratch + tap / KW * SCRATCH + tap % KW * PITCH_OUT;
      float sum = 0.f;
#pragma unroll
      for (int j = 0; j < 8; j++) sum += from[j * (PITCH_OUT + 1)];
      out[2 * p * KW + tap] = sum;
    }
    __syncwarp();
  }
}

// partial: [splits][c][KH][KW]. A block stays with its channels, and a warp keeps the sums of its own.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    weight_gradient(const __grid_constant__ Source x, const __grid_constant__ Source gy, float* __restrict__ partial,
                    int n, int c, int, int, int splits) {
  T* planes = (T*)(smem + FIRST);                        // of the input, then of the gradient
  u64* full = (u64*)(planes + 2 * CB * PLANE);           // [STAGES]
  const int groups = (c + CB - 1) / CB, channel0 = blockIdx.x % groups * CB, split = blockIdx.x / groups,
            jobs = (n + IMAGES - 1) / IMAGES;
  const int warp = uniform(threadIdx.x / 32), image = warp % IMAGES, which = warp / IMAGES;
  const auto order = [&](int job, int stage) {
    if (threadIdx.x % 32) return;
    if (warp == 0) expect_bytes(full + stage, 2 * bytes_of_stage(job * IMAGES, channel0, n, c));
    order_image((T*)smem + (2 * stage + which) * STAGE, which ? gy : x, image, job * IMAGES, channel0, n, c,
                full + stage);
  };
  if (threadIdx.x == 0) {
    prepare(x), prepare(gy);
    for (int s = 0; s < STAGES; s++) make_bytes_barrier(full + s);
  }
  __syncthreads();
  overlap_launches();
  for (int s = 0; s < STAGES && split + s * splits < jobs; s++) order(split + s * splits, s);
  float sums[PAIRS][4] = {};
  int stage = 0, round = 0;
#pragma unroll 1
  for (int job = split; job < jobs; job += splits) {
    __syncthreads();                                     // the last job's planes have been read
    wait_bytes(full + stage, round);
    const T* from = (T*)smem + (2 * stage + which) * STAGE;
    if (job * IMAGES + image < n || LAST) spread(planes + which * CB * PLANE, from, image);
    else clear_image(planes + which * CB * PLANE, image);
    publish_shared();
    __syncthreads();
    if (job + STAGES * splits < jobs) order(job + STAGES * splits, stage);
    multiply(sums, planes + warp * PLANE, planes + (CB + warp) * PLANE);
    if (++stage == STAGES) stage = 0, round++;
  }
  __syncthreads();
  if (channel0 + warp < c)
    put_taps(partial + ((i64)split * c + channel0 + warp) * TAPS, sums, (float*)smem + warp * 2 * SCRATCH);
}
