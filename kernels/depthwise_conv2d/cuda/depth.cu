// Weight gradient of a depthwise convolution of channels-last maps of up to four blocks of eight columns in
// 16-bit types on tensor cores.
//
// Strands (images, or parts of one) are the depth of the products: with eight of them, a row of the input (eight
// columns of it) times a row of the gradient is an 8x8 matrix, and all pairs of rows that lie equally far apart add
// up in the same registers. So a channel's rows are read from shared memory once for all kernel rows. Two rows of
// the gradient with two of the input make a depth of sixteen, two distances the sixteen rows of a product. A tap is
// the sum of a diagonal at last.
//
// Defined at compile time: MIN_BLOCKS, SHARED_BYTES, and what image_planes.cuh needs.

constexpr int UP = KH / 2, PAIRS = (KH + 1) / 2;  // of kernel rows
constexpr int AROUND = KW / 2 > 8 * FAR ? KW / 2 - 8 * FAR : 0;  // rows of zeros above and below the pieces
constexpr int PITCH = 9, SCRATCH = (8 * PIECES + 2 * AROUND) * PITCH;  // numbers, of a kernel row
constexpr bool IN_PLACE = 2 * SCRATCH * 4 <= PLANE * 2;  // a warp adds up its sums where its channel's plane was
static_assert(2 * (PLANES + WAITING) * 2 + (IN_PLACE ? 0 : WARPS * 2 * SCRATCH * 4) == SHARED_BYTES,
              "gpu_tiles.py counts otherwise");
static_assert(AHEAD && WARPS == CB, "a warp keeps its channel's sums");

// sums[p][b]: of kernel rows 2p and 2p + 1, and input blocks that lie b - FAR to the right of the gradient's.
//
// A product takes two rows of the gradient, and of the input the two that the first kernel row shows them
// and the two that the second does, of which the middle ones are the same: so many products, with other rows
// of the gradient, need these.
__device__ __forceinline__ void multiply(float (&sums)[PAIRS][PIECES][4], const T* plane, const T* plane_g) {
  constexpr int HALF = (ROWS + 1) / 2;
  const int lane = threadIdx.x % 32, part = lane / 8, strand = slot_of(lane % 8) * 8;
  u32 g[HALF][BLOCKS][2];
#pragma unroll
  for (int row = 0; row < HALF; row++)
#pragma unroll
    for (int j = 0; j < BLOCKS; j += 2) {                // two rows of a block, then of the next
      u32 r[4];
      ldmatrix_x4_trans(
          r, plane_g + (min(2 * row + part % 2, ROWS - 1) * BLOCKS + min(j + part / 2, BLOCKS - 1)) * MATRIX + strand);
      g[row][j][0] = r[0], g[row][j][1] = 2 * row + 1 < ROWS ? r[1] : 0u;
      if (j + 1 < BLOCKS) g[row][j + 1][0] = r[2], g[row][j + 1][1] = 2 * row + 1 < ROWS ? r[3] : 0u;
    }
#pragma unroll
  for (int seen = -(UP + 2); seen < (GROUPS == 1 ? ROWS : ROWS + UP); seen++) {
    if ((seen + UP) % 2 || seen < (GROUPS == 1 ? -2 : -UP)) continue;
    // input rows seen, seen + 1, seen + 1, seen + 2
    const int mine = seen + (part + 1) / 2, away = GROUPS == 1 ? 0 : (mine + 8 * ROWS) / ROWS - 8;
    const int row = GROUPS == 1 ? min(max(mine, 0), ROWS - 1) : mine - away * ROWS;
    const T* from = plane + row * BLOCKS * MATRIX + strand + away * 8;
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) {
      u32 a[4];
      ldmatrix_x4_trans(a, from + i * MATRIX);
      if (GROUPS == 1) {
        if (seen < 0) a[0] = 0u;
        if (seen + 1 < 0 || seen + 1 >= ROWS) a[1] = a[2] = 0u;
        if (seen + 2 >= ROWS) a[3] = 0u;
      }
#pragma unroll
      for (int p = 0; p < PAIRS; p++) {
        const int of_g = seen + UP - 2 * p;              // the first of the gradient's two
        if (of_g < 0 || of_g >= ROWS) continue;
#pragma unroll
        for (int j = 0; j < BLOCKS; j++)
          if (i - j <= FAR && j - i <= FAR) mma_16816<T>(sums[p][i - j + FAR], a, g[of_g / 2][j][0], g[of_g / 2][j][1]);
      }
    }
  }
}

// The taps of a channel to out[KH][KW]. Rows of zeros around the pieces' stand for what meets nothing.
__device__ __forceinline__ void put_taps(float* out, const float (&sums)[PAIRS][PIECES][4], float* scratch) {
  const int lane = threadIdx.x % 32;
  for (int i = lane; i < 2 * SCRATCH; i += 32) scratch[i] = 0.f;
  __syncwarp();
  float* mine = scratch + (AROUND + lane / 4) * PITCH + lane % 4 * 2;
#pragma unroll
  for (int p = 0; p < PAIRS; p++) {
#pragma unroll
    for (int b = 0; b < PIECES; b++) {
      float* to = mine + 8 * b * PITCH;
      to[0] = sums[p][b][0], to[1] = sums[p][b][1], to[SCRATCH] = sums[p][b][2], to[SCRATCH + 1] = sums[p][b][3];
    }
    __syncwarp();
    for (int tap = lane; tap < min(2, KH - 2 * p) * KW; tap += 32) {
      const float* from = scratch + tap / KW * SCRATCH + (tap % KW - KW / 2 + 8 * FAR + AROUND) * PITCH;
      float sum = 0.f;
#pragma unroll
      for (int j = 0; j < 8; j++) sum += from[j * (PITCH + 1)];
      out[2 * p * KW + tap] = sum;
    }
    __syncwarp();
  }
}

// partial: [splits][c][KH][KW]. A block stays with its channels, and a warp keeps the sums of its own.
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    weight_gradient(const T* __restrict__ x, const T* __restrict__ gy, float* __restrict__ partial, int n, int c, int,
                    int, int splits) {
  overlap_launches();
  T *planes = (T*)smem, *planes_g = planes + PLANES;
  const int groups = (c + CB - 1) / CB, channel0 = blockIdx.x % groups * CB, split = blockIdx.x / groups,
            warp = threadIdx.x / 32, channel = channel0 + warp;
  Loader input, gradient;
  input.waiting = (uint2*)(planes_g + PLANES), gradient.waiting = input.waiting + WAITING / 4;
  const auto fetch = [&](int image0) {
    input.fetch(x, image0, channel0, n, c);
    gradient.fetch(gy, image0, channel0, n, c);
  };
  fetch(split * IMAGES);
  // around images in parts
  for (int i = threadIdx.x; i < 2 * PLANES / 8; i += THREADS) ((uint4*)planes)[i] = make_uint4(0, 0, 0, 0);
  float sums[PAIRS][PIECES][4];
#pragma unroll
  for (int p = 0; p < PAIRS; p++)
#pragma unroll
    for (int b = 0; b < PIECES; b++)
#pragma unroll
      for (int e = 0; e < 4; e++) sums[p][b][e] = 0.f;
  for (int image0 = split * IMAGES; image0 < n; image0 += splits * IMAGES) {
    __syncthreads();
    cp_async_wait<0>();
    input.commit(planes);
    gradient.commit(planes_g);
    __syncthreads();
    fetch(image0 + splits * IMAGES);
    multiply(sums, planes + plane_of(warp), planes_g + plane_of(warp));
  }
  __syncthreads();
  float* scratch =
      IN_PLACE ? (float*)(planes + plane_of(warp)) : (float*)(planes + 2 * (PLANES + WAITING)) + warp * 2 * SCRATCH;
  if (channel < c) put_taps(partial + ((i64)split * c + channel) * (KH * KW), sums, scratch);
}
