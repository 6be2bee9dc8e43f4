// Gradient of the weight of a depthwise 3x3 convolution on channels-last maps by the copy engine and the tensor cores of Hopper. For eight channels, the taps
// are sums over cells of the diagonals of X^T G: an eighth of what is multiplied, but hardly an instruction beside the copies.
//
// A job is G octets of channels of SLOTS strips of TH rows by NO octets of columns. One thread orders the boxes of cells of a block's jobs into STAGES
// places in shared memory; what lies outside of the map comes as zeros. A warp owns eight channels of pairs of lines, octets of columns that it walks down:
// the matrix rows are the channels at one tap and at the tap beside it, the depth are eight cells of each line.
//
// A row of a strip is PX cells of the input, from the one to the left on, and a multiple of eight, so that from row to row only a constant is added to an
// address. Where the gradient has a column of zeros at its right, PX is no more than its columns: behind a row's end stands the column to the left of the next
// one, of zeros, and what is behind that meets zeros of the gradient.
//
// Defined from outside: T, G, SLOTS, TH, NO, PX, WHOLE (strips are maps, so that no row above or below is wanted), STAGES, WARPS, MIN_BLOCKS.

extern __shared__ unsigned char smem[];

constexpr int PG = 8 * NO, ABOVE = WHOLE ? 0 : 1, ROWS = TH + 2 * ABOVE;  // cells of a row of the gradient; rows of the input
constexpr int CELLS_X = ROWS * PX, CELLS_G = TH * PG, BEHIND = PX > PG ? 0 : 8;  // of a slot; of zeros behind the last slot of the input
constexpr int PLACE = (SLOTS * (CELLS_X + CELLS_G) + BEHIND) * G;  // units of 16 bytes
constexpr int LINES = SLOTS * NO, PAIRS = (LINES + 1) / 2, SHARERS = WARPS / G;  // warps that share the lines of eight channels
static_assert(PX % 8 == 0 && PX >= PG, "eight cells begin in the same banks in all rows");

// Where eight channels of a cell lie, in units of 16 bytes, as `tensor_copy` puts them.
__device__ __forceinline__ int unit(int cell, int octet) {
  return cell * G + (octet ^ (G == 8 ? cell & 7 : G == 4 ? cell >> 1 & 3 : G == 2 ? cell >> 2 & 1 : 0));
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, MIN_BLOCKS)
    weight_gradient(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap gy, float* __restrict__ partial, int n, int c, int h, int width, int splits) {
  const int groups = (c / 8 + G - 1) / G, group = blockIdx.x % groups, split = blockIdx.x / groups;
  const int down = (h + TH - 1) / TH, across = (width + PG - 1) / PG, jobs = (n * down * across + SLOTS - 1) / SLOTS;
  uint4* places = (uint4*)smem;                          // [STAGES], each SLOTS strips of the input, then of the gradient
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
        const int strip = job * SLOTS + slot, image = strip / (down * across), row = strip / across % down * TH, col = strip % across * PG;
        tensor_copy<ROWS, PX, G, 1>(to_x + slot * CELLS_X * G, x, group * G * 8, col - 1, row - 1, image, full + stage);
        tensor_copy<TH, PG, G, 1>(to_g + slot * CELLS_G * G, gy, group * G * 8, col, row, image, full + stage);
      }
    }
  };
  if (threadIdx.x == 0) {
    fetch_map(x), fetch_map(gy);
    for (int s = 0; s < STAGES; s++) make_bytes_barrier(full + s);
  }
  for (int i = threadIdx.x; i < STAGES * BEHIND * G; i += 32 * WARPS) places[i / (8 * G) * PLACE + SLOTS * CELLS_X * G + i % (8 * G)] = make_uint4(0, 0, 0, 0);
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
    const uint4 *in = places + stage * PLACE, *grad = in + (SLOTS * CELLS_X + BEHIND) * G;
#pragma unroll 1
    for (int pair = sharer; pair < PAIRS; pair += SHARERS) {
      const int four = min(2 * pair + lane / 16, LINES - 1), two = min(2 * pair + lane / 8 % 2, LINES - 1);  // lines of a lane's address, in loads of 4 and of 2
      const uint4* near_at = in + unit(four / NO * CELLS_X + four % NO * 8 + lane % 8 + lane / 8 % 2, octet);  // taps 0 and 1
      const uint4* far_at = in + unit(two / NO * CELLS_X + two % NO * 8 + lane % 8 + 2, octet);  // tap 2
      const uint4* grad_at = grad + unit(two / NO * CELLS_G + two % NO * 8 + lane % 8, octet);
      const bool lonely = 2 * pair + 1 == LINES;
      u32 near[2][4], far[3][2] = {}, g[4][2] = {};      // of input rows r, r + 1; r - 1, r, r + 1; of the gradient's rows r + 1 to r - 2
      const auto load = [&](int r) {                     // input row r - 1 of the strip and the gradient's row r
        if (r >= 1 - ABOVE && r <= TH + ABOVE) {
          ldmatrix_x4_trans(near[r % 2], near_at + (r - 1 + ABOVE) * PX * G);
          ldmatrix_x2_trans(far[r % 3], far_at + (r - 1 + ABOVE) * PX * G);
        }
        if (r < TH) ldmatrix_x2_trans(g[r % 4], grad_at + r * PG * G);
        if (lonely) g[r % 4][1] = 0;
      };
      if (WHOLE) load(0);
      load(1 - ABOVE);
#pragma unroll
      for (int r = 1 - ABOVE; r <= TH + ABOVE; r++) {    // input row r - 1 meets the gradient's rows r - kh
        if (r + 1 <= TH + ABOVE) load(r + 1);
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
