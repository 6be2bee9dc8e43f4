// Depthwise convolution in 16-bit types on wide contiguous maps: toeplitz.cu says how the products work.
//
// A block walks down one channel of one image over its whole width, a warp NT blocks of eight columns, sixteen
// output rows a step. Rows lie in a ring, each read once; while a step is computed, the sixteen rows of the next one
// but one are in flight. Outputs take the place of the oldest rows, which nobody needs any more, leave in whole
// vectors, and make room for what comes.

constexpr int STEP = 16;
constexpr int WINDOW_ROWS = STEP + 2 * REACH_ROWS;       // that a step sees
constexpr int RING = WINDOW_ROWS + STEP;
constexpr int ALL_BLOCKS = WARPS * NT + 2 * SIDE;        // of a row, with its halo
constexpr int LINE = PITCH_OF(ALL_BLOCKS);
constexpr int COPIES = 8 * NT / VEC;                     // of a warp's part of a row

__device__ __forceinline__ int in_ring(int q) { return q < RING ? q : q - RING; }

// A warp's part of `count` rows from input row `row` on into the ring from `slot` on; the
// outer warps take the halo too.
__device__ __forceinline__ void copy_rows(T* ring, const T* __restrict__ x, int slot, int row, int count,
                                          const Map& map) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int before = warp == 0 ? 8 * SIDE / VEC : 0,
            copies = COPIES + before + (warp == WARPS - 1 ? 8 * SIDE / VEC : 0);
  for (int u = lane; u < count * copies; u += 32) {
    const int line = u / copies, col = warp * 8 * NT + (u % copies - before) * VEC;
    int at_row = row + line, at_col = col;
    const bool there = locate<PAD_ROWS_MODE, PAD_COLS_MODE>(at_row, at_col, map);
    const T* from = there ? x + (i64)at_row * map.w + at_col : x;
    T* to = ring + in_ring(slot + line) * LINE + 8 * SIDE + col;
    if constexpr (VEC == 8) cp_async_16(to, from, there);
    else if constexpr (VEC == 4) cp_async_8(to, from, there);
    else if constexpr (VEC == 2) cp_async_4(to, from, there);
    else *to = there ? *from : T{};
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    forward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
            float* __restrict__ sums, int n, int c, int h, int width, int flip, int segments) {
  T* ring = (T*)smem;                                    // [RING][LINE]
  T* taps = ring + RING * LINE;
  float* scratch = (float*)(taps + KH * 2 * TAPS);       // [WARPS]
  const int segment = blockIdx.x % segments, steps = ((h + segments - 1) / segments + STEP - 1) / STEP,
            row0 = segment * steps * STEP;
  const int rows = min(steps * STEP, h - row0), plane = blockIdx.x / segments, channel = plane % c;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4, col0 = warp * 8 * NT;
  const Map map = {n, c, h, width};
  const i64 size = (i64)h * width;
  x += plane * size, y += plane * size;
  copy_rows(ring, x, 0, row0 - REACH_ROWS, WINDOW_ROWS, map);
  cp_async_commit();
  copy_rows(ring, x, WINDOW_ROWS, row0 - REACH_ROWS + WINDOW_ROWS, STEP, map);
  cp_async_commit();
  pad_taps(taps, w, channel, c, flip != 0);
  const u32* my_taps = lane_taps<false>(taps);
  const float start = bias ? to_float(bias[channel]) : 0.f;
  float total = 0.f;
  int slot = 0;                                          // of the first row of the window
#pragma unroll 1
  for (int m0 = 0; m0 < rows; m0 += STEP) {
    cp_async_wait<1>();
    __syncthreads();
    float acc[NT][4];
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[j][e] = start;
    const T* mine = ring + col0 + fragment_col(lane);
#pragma unroll UNROLL
    for (int kh = 0; kh < KH; kh++) {
      u32 taps_of_row[WINDOW];
      read_taps<false>(taps_of_row, my_taps, kh);
      Fragment f[BLOCKS_IN];
      load_fragments<BLOCKS_IN, false>(f, mine + in_ring(in_ring(slot + fragment_row(lane)) + kh * DIL) * LINE);
      multiply<false>(acc, f, f, taps_of_row, taps_of_row);
    }
    __syncthreads();                                     // all have seen the oldest rows
#pragma unroll
    for (int half = 0; half < 2; half++) {
      u32* to = (u32*)(ring + in_ring(slot + g + 8 * half) * LINE + 8 * SIDE + col0 + 2 * t);
#pragma unroll
      for (int j = 0; j < NT; j++) to[4 * j] = pack2<T>(acc[j][2 * half], acc[j][2 * half + 1]);
    }
    __syncwarp();
    for (int u = lane; u < STEP * COPIES; u += 32) {
      const int line = u / COPIES, col = col0 + u % COPIES * VEC;
      if (m0 + line >= rows || col >= width) continue;
      const T* from = ring + in_ring(slot + line) * LINE + 8 * SIDE + col;
      T* to = y + (i64)(row0 + m0 + line) * width + col;
      if (sums)
        for (int e = 0; e < VEC; e++) total += to_float(from[e]);
      if constexpr (VEC == 8) *(uint4*)to = *(const uint4*)from;
      else if constexpr (VEC == 4) *(uint2*)to = *(const uint2*)from;
      else if constexpr (VEC == 2) *(u32*)to = *(const u32*)from;
      else *to = *from;
    }
    __syncwarp();
    if (m0 + 2 * STEP < rows) copy_rows(ring, x, slot, row0 - REACH_ROWS + m0 + RING, STEP, map);
    cp_async_commit();
    slot = in_ring(slot + STEP);
  }
  cp_async_wait<0>();
  if (!sums) return;
#pragma unroll
  for (int mask = 16; mask; mask /= 2) total += shfl_xor(total, mask);
  if (lane == 0) scratch[warp] = total;
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0.f;
    for (int i = 0; i < WARPS; i++) sum += scratch[i];
    sums[(i64)segment * n * c + plane] = sum;
  }
}
