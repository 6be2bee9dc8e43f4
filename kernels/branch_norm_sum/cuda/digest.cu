// Computes what `statistics` in branches.cu leaves, from the products of a map's cells (gram.cu): for each term the
// weight gradient that its own output would give as incoming gradient, the sum and the sum of squares of that output,
// and the sums of the input that each tap of the window sees.
//
// With z = sum over rows k' of T(k') x(row + k'), T a banded Toeplitz matrix of columns by columns, that gradient is,
// for the tap in row k and column l, the sum of the l-th diagonal of the sum over k' of T(k') H(k', k), where H(k', k)
// is the sum of the products of rows row + k' and row + k of the map over all its rows: a stretch of one diagonal of
// pairs of rows. H goes into the products in three parts of eight bits each.
//
// A block has a channel, a warp a row of the window. Maps have up to 16 columns.

constexpr int SCRATCH_PITCH = 17, SCRATCH = 16 * SCRATCH_PITCH;

__host__ __device__ constexpr int rows_before(int term) {
  int rows = 0;
  for (int t = 0; t < term; t++) rows += KERNEL[t];
  return rows;
}
constexpr int ALL_ROWS = rows_before(TERMS);

// The sums H of rows `apart` apart, the upper one `least` rows off the centre: one where the map's border cuts off no
// more than the other row does, then one for each row that it cuts off above, and below.
__host__ __device__ constexpr int before(int apart) {
  return apart <= REACH ? apart * (2 * REACH + 2 - apart) : REACH * (REACH + 1) + apart;
}
__device__ __forceinline__ int matrix_of(int apart, int least) {
  return before(apart) + max(REACH - apart, 0) + (least >= 0 ? least : -max(-least - apart, 0));
}
constexpr int MATRICES = before(APART);

__device__ __forceinline__ void sum_rows(float* matrices, const float* __restrict__ gram) {
#pragma unroll 2
  for (int i = threadIdx.x; i < APART * CELLS; i += THREADS) {
    const int apart = i / CELLS, cell = i % CELLS;
    float value[HEIGHT], sum = 0.f;
#pragma unroll
    for (int u = 0; u < HEIGHT; u++)
      value[u] = u + apart < HEIGHT ? __ldg(gram + (u * HEIGHT - u * (u - 1) / 2 + apart) * CELLS + cell) : 0.f;
    float* to = matrices + matrix_of(apart, 0) * CELLS + cell;
#pragma unroll
    // up to row u; the first row of the pairs may be HEIGHT - 1 - apart at most
    for (int u = 0; u < HEIGHT; u++) {
      sum += value[u];
      const int cut = HEIGHT - 1 - u - apart;
      if (cut > 0 && cut <= REACH - apart) to[-cut * CELLS] = sum;
    }
    for (int cut = HEIGHT - apart; cut <= REACH - apart; cut++) to[-cut * CELLS] = 0.f;  // that many leave no pair
    sum = 0.f;
#pragma unroll
    for (int u = max(HEIGHT - 1, REACH); u >= 0; u--) {  // from row u on
      if (u < HEIGHT) sum += value[u < HEIGHT ? u : 0];
      if (u == 0 || u <= REACH - apart) to[u * CELLS] = sum;
    }
  }
}

// A term's rows as matrices: rows are columns of the output, columns those of the input. [TAP_PARTS][ALL_ROWS][32]
template <int TERM> __device__ __forceinline__ void lay_out(uint4* rows, const float* taps) {
  if constexpr (TERM < TERMS) {
    constexpr int K = KERNEL[TERM], D = DILATION[TERM];
    const int lane = threadIdx.x % 32;
    for (int row = (threadIdx.x / 32 + THREADS / 32 - rows_before(TERM) % (THREADS / 32)) % (THREADS / 32); row < K;
         row += THREADS / 32) {
      const auto tap = [&](int column) {
        const bool there = column % D == 0 && column >= -(K / 2 * D) && column <= K / 2 * D;
        return there ? taps[taps_before(TERM) + row * K + K / 2 + column / D] : 0.f;
      };
      uint4 found[TAP_PARTS];
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int column = (lane % 4 * 2 + e / 2 * 8) - (lane / 4 + e % 2 * 8);
        u32 parts[TAP_PARTS];
        split(parts, tap(column), tap(column + 1));
#pragma unroll
        for (int p = 0; p < TAP_PARTS; p++) word(found[p], e) = parts[p];
      }
#pragma unroll
      for (int p = 0; p < TAP_PARTS; p++) rows[(p * ALL_ROWS + rows_before(TERM) + row) * 32 + lane] = found[p];
    }
    lay_out<TERM + 1>(rows, taps);
  }
}

// The row of a term that stands in that row of the window, from its centre; -1: none.
template <int TERM> __device__ __forceinline__ int row_of(int row) {
  constexpr int K = KERNEL[TERM], D = DILATION[TERM];
  return row % D == 0 && row >= -(K / 2 * D) && row <= K / 2 * D ? row / D + K / 2 : -1;
}

template <int TERM>
__device__ __forceinline__ void multiply(float (&acc)[TERMS][2][4], const uint4* rows, const u32 (&h)[4][3], int row,
                                         int other) {
  if constexpr (TERM < TERMS) {
    const int from = row_of<TERM>(other);
    if (row_of<TERM>(row) >= 0 && from >= 0) {
#pragma unroll
      for (int p = 0; p < TAP_PARTS; p++) {
        const uint4 v = rows[(p * ALL_ROWS + rows_before(TERM) + from) * 32 + threadIdx.x % 32];
        const u32 a[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int part = 2; part >= 0; part--) {
          mma_16816<bf16>(acc[TERM][0], a, h[0][part], h[1][part]);
          mma_16816<bf16>(acc[TERM][1], a, h[2][part], h[3][part]);
        }
      }
    }
    multiply<TERM + 1>(acc, rows, h, row, other);
  }
}

// The sums of the diagonals of one row of each term.
template <int TERM>
__device__ __forceinline__ void put(float* outputs, const float (&acc)[TERMS][2][4], float* scratch, int row) {
  if constexpr (TERM < TERMS) {
    constexpr int K = KERNEL[TERM], D = DILATION[TERM];
    const int mine = row_of<TERM>(row), lane = threadIdx.x % 32;
    if (mine >= 0) {
#pragma unroll
      for (int e = 0; e < 8; e++)
        scratch[(lane / 4 + e / 2 % 2 * 8) * SCRATCH_PITCH + e / 4 * 8 + lane % 4 * 2 + e % 2] =
            acc[TERM][e / 4][e % 4];
      __syncwarp();
      if (lane < K) {
        const int column = (lane - K / 2) * D;
        float sum = 0.f;
        for (int out = max(0, -column); out < min(WIDTH, WIDTH - column); out++)
          sum += scratch[out * SCRATCH_PITCH + out + column];
        outputs[taps_before(TERM) + mine * K + lane] = sum;
      }
      __syncwarp();
    }
    put<TERM + 1>(outputs, acc, scratch, row);
  }
}

// gram: [c, pairs of rows, w, w], total: [c, h, w]; to sums, [c, count], and moments, [TERMS, 2, c].
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    digest(const float* __restrict__ gram, const float* __restrict__ total, const W* w0, const W* w1, const W* w2,
           const W* w3, const W* w4, const W* w5, float* __restrict__ sums, float* __restrict__ moments, int c,
           int count) {
  const W* const w[6] = {w0, w1, w2, w3, w4, w5};
  uint4* rows = (uint4*)smem;
  float* matrices = (float*)(rows + TAP_PARTS * ALL_ROWS * 32);  // [MATRICES][CELLS]; later scratch of the warps
  float *taps = matrices + max(MATRICES * CELLS, WINDOW * SCRATCH), *outputs = taps + ALL_TAPS,
        *seen = outputs + ALL_TAPS, *image = seen + WINDOW * WINDOW;
  const int channel = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  sums += (i64)channel * count;
  load_taps(taps, w, channel);
  sum_rows(matrices, gram + (i64)channel * (HEIGHT * (HEIGHT + 1) / 2) * CELLS);
  integrate(image, total + (i64)channel * (HEIGHT * WIDTH));
  lay_out<0>(rows, taps);
  for (int i = threadIdx.x; i < WINDOW * WINDOW; i += THREADS)
    sums[ALL_TAPS + i] = seen[i] = seen_by(image, i / WINDOW - REACH, i % WINDOW - REACH);
  __syncthreads();

  float acc[TERMS][2][4] = {};
  const int row = warp - REACH;
#pragma unroll 1
  for (int other = -REACH; other <= REACH; other++) {
    const int apart = abs(row - other);
    if (apart >= APART) continue;
    const float* from = matrices + matrix_of(apart, min(row, other)) * CELLS;
    // the steps of both columns in a product
    const int of_input = other <= row ? WIDTH : 1, of_seen = WIDTH + 1 - of_input;
    u32 h[4][3];
#pragma unroll
    for (int e = 0; e < 4; e++) {
      float value[2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int input = e % 2 * 8 + lane % 4 * 2 + i, column = e / 2 * 8 + lane / 4;
        value[i] = input < WIDTH && column < WIDTH ? from[input * of_input + column * of_seen] : 0.f;
      }
      split(h[e], value[0], value[1]);
    }
    multiply<0>(acc, rows, h, row, other);
  }
  __syncthreads();
  put<0>(outputs, acc, matrices + warp * SCRATCH, row);
  __syncthreads();
  for (int i = threadIdx.x; i < ALL_TAPS; i += THREADS) sums[i] = outputs[i];
#pragma unroll
  for (int t = 0; t < TERMS; t++) {
    if (warp != t % WINDOW) continue;
    const int k = KERNEL[t], d = DILATION[t], edge = REACH - k / 2 * d;
    float sum = 0.f, squares = 0.f;
    for (int i = lane; i < k * k; i += 32) {
      const float tap = taps[taps_before(t) + i];
      sum += tap * seen[(edge + i / k * d) * WINDOW + edge + i % k * d], squares += tap * outputs[taps_before(t) + i];
    }
#pragma unroll
    for (int mask = 16; mask; mask /= 2) sum += shfl_xor(sum, mask), squares += shfl_xor(squares, mask);
    if (lane == 0) moments[2 * t * c + channel] = sum, moments[(2 * t + 1) * c + channel] = squares;
  }
}
