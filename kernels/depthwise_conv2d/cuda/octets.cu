// Gradient of the weight of a depthwise 3x3 convolution on channels-last maps by the copy engine and the tensor cores of Hopper. For eight channels, the taps
// are sums over cells of the diagonals of X^T G: an eighth of what is multiplied, but hardly an instruction beside the copies.
//
// A job is G octets of channels of SLOTS strips of TH rows by NO octets of columns. One thread orders the boxes of cells of a block's jobs into STAGES
// places in shared memory; what lies outside of the map comes as zeros. A warp owns eight channels of pairs of lines, octets of columns that it walks down:
// the matrix rows are the channels at one tap and at the tap beside it, the depth are eight cells of each line.
//
// Defined from outside: T, G, SLOTS, TH, NO, STAGES, WARPS, MIN_BLOCKS.

extern __shared__ unsigned char smem[];

constexpr int PX = 8 * NO + 2, PG = 8 * NO;              // cells of a row of the input and of the gradient
constexpr int CELLS_X = ((TH + 2) * PX + 7) / 8 * 8, CELLS = CELLS_X + TH * PG;  // of a slot
constexpr int LINES = SLOTS * NO, PAIRS = (LINES + 1) / 2, SHARERS = WARPS / G;  // warps that share the lines of eight channels

// Where eight channels of a cell lie, in units of 16 bytes, as `tensor_copy` puts them.
__device__ __forceinline__ int unit(int cell, int octet) {
  return cell * G + (octet ^ (G == 8 ? cell & 7 : G == 4 ? cell >> 1 & 3 : G == 2 ? cell >> 2 & 1 : 0));
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, MIN_BLOCKS)
    weight_gradient(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap gy, float* __restrict__ partial, int n, int c, int h, int width, int splits) {
  const int groups = (c / 8 + G - 1) / G, group = blockIdx.x % groups, split = blockIdx.x / groups;
  const int down = (h + TH - 1) / TH, across = (width + PG - 1) / PG, jobs = (n * down * across + SLOTS - 1) / SLOTS;
  uint4* places = (uint4*)smem;                          // [STAGES][SLOTS * CELLS][G]
  u64* full = (u64*)(places + STAGES * SLOTS * CELLS * G);  // [STAGES]
  const auto order = [&](int job, int stage) {
    expect_bytes(full + stage, SLOTS * ((TH + 2) * PX + TH * PG) * G * 16);
#pragma unroll 1
    for (int slot = 0; slot < SLOTS; slot++) {           // beyond the last image there are zeros
      const int strip = job * SLOTS + slot, image = strip / (down * across), row = strip / across % down * TH, col = strip % across * PG;
      uint4* to = places + (stage * SLOTS + slot) * CELLS * G;
      tensor_copy<TH + 2, PX, G>(to, x, group * G * 8, col - 1, row - 1, image, full + stage);
      tensor_copy<TH, PG, G>(to + CELLS_X * G, gy, group * G * 8, col, row, image, full + stage);
    }
  };
  if (threadIdx.x == 0) {
    fetch_map(x), fetch_map(gy);
    for (int s = 0; s < STAGES; s++) make_bytes_barrier(full + s);
  }
  overlap_launches();
  if (threadIdx.x == 0)
#pragma unroll 1
    for (int s = 0; s < STAGES && split + s * splits < jobs; s++) order(split + s * splits, s);
  __syncthreads();
  const int lane = threadIdx.x % 32, octet = threadIdx.x / 32 % G, sharer = threadIdx.x / 32 / G;
  float d[3][4] = {}, e[2][4] = {};                      // taps 0 and 1 of each kernel row; tap 2 of kernel rows 1 and 0, and of 2
  int stage = 0, round = 0;
#pragma unroll 1
  for (int job = split; job < jobs; job += splits) {
    wait_bytes(full + stage, round);
    const uint4* at = places + stage * SLOTS * CELLS * G;
#pragma unroll 1
    for (int pair = sharer; pair < PAIRS; pair += SHARERS) {
      const int four = min(2 * pair + lane / 16, LINES - 1), two = min(2 * pair + lane / 8 % 2, LINES - 1);  // lines of a lane's address, in loads of 4 and of 2
      const int near_at = four / NO * CELLS + four % NO * 8 + lane % 8 + lane / 8 % 2;  // taps 0 and 1
      const int far_at = two / NO * CELLS + two % NO * 8 + lane % 8 + 2, grad_at = far_at + CELLS_X - 2;  // tap 2
      const bool lonely = 2 * pair + 1 == LINES;
      u32 near[2][4], far[3][2] = {}, g[4][2] = {};      // of input rows r, r + 1; r - 1, r, r + 1; of the gradient's rows r + 1 to r - 2
      const auto load = [&](int r) {
        ldmatrix_x4_trans(near[r % 2], at + unit(near_at + r * PX, octet));
        ldmatrix_x2_trans(far[r % 3], at + unit(far_at + r * PX, octet));
        if (r < TH) ldmatrix_x2_trans(g[r % 4], at + unit(grad_at + r * PG, octet));
        else g[r % 4][0] = g[r % 4][1] = 0;
        if (lonely) g[r % 4][1] = 0;
      };
      load(0);
#pragma unroll
      for (int r = 0; r < TH + 2; r++) {                 // input row r - 1 of the strip, which meets the gradient's rows r - kh
        if (r + 1 < TH + 2) load(r + 1);
#pragma unroll
        for (int kh = 0; kh < 3; kh++)
          if (r - kh >= 0 && r - kh < TH) mma_16816<T>(d[kh], near[r % 2], g[(r - kh) % 4][0], g[(r - kh) % 4][1]);
        const u32* now = far[r % 3];
        const u32* before = far[(r + 2) % 3];
        const u32 tap2[4] = {now[0], before[0], now[1], before[1]};
        if (r >= 1 && r - 1 < TH) mma_16816<T>(e[0], tap2, g[(r - 1) % 4][0], g[(r - 1) % 4][1]);
        if (r >= 2) mma_16816<T>(e[1], tap2, g[(r - 2) % 4][0], g[(r - 2) % 4][1]);
      }
    }
    const int next = job + STAGES * splits;
    if (next < jobs) {
      __syncthreads();
      if (threadIdx.x == 0) order(next, stage);
    }
    if (++stage == STAGES) stage = 0, round++;
  }
  __syncthreads();
  float* scratch = (float*)smem;                         // [SHARERS][G][8][9]
  const int row = lane / 4;                              // a lane holds two columns of this row, and of that eight further; one of them is on the diagonal
  const bool odd = row % 2;
  if (lane % 4 == row / 2) {
    float* to = scratch + (threadIdx.x / 32 * 8 + row) * 9;
#pragma unroll
    for (int kh = 0; kh < 3; kh++) to[3 * kh] = odd ? d[kh][1] : d[kh][0], to[3 * kh + 1] = odd ? d[kh][3] : d[kh][2];
    to[2] = odd ? e[0][3] : e[0][2], to[5] = odd ? e[0][1] : e[0][0], to[8] = odd ? e[1][1] : e[1][0];
  }
  __syncthreads();
  const int first = group * G * 72, count = min(G * 72, 9 * c - first);
  for (int i = threadIdx.x; i < count; i += 32 * WARPS) {
    float sum = 0.f;
#pragma unroll
    for (int s = 0; s < SHARERS; s++) sum += scratch[s * G * 72 + i];
    partial[(i64)split * 9 * c + first + i] = sum;
  }
}
