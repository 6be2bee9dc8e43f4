// From the products of a map's cells (gram.cu) what `statistics` in branches.cu leaves: of each term the weight's gradient if its own output came back, that
// output's sum and the sum of its squares, and what each tap of the window sees.
//
// With z = sum over rows k' of T(k') x(row + k'), T a banded Toeplitz matrix of columns by columns, that gradient is, for the tap in row k and column l, the sum of
// the l-th diagonal of the sum over k' of T(k') H(k', k), where H(k', k) is the sum of the products of rows row + k' and row + k of the map over all its rows: a stretch
// of one diagonal of pairs of rows, so the difference of two sums from its beginning. H goes into the products in three parts of eight bits each.
//
// A block has a channel, a warp a row of the window. Maps have up to 16 columns.

constexpr int SCRATCH_PITCH = 17, SCRATCH = 16 * SCRATCH_PITCH;

// Where the sums along a diagonal of pairs of rows begin, in matrices of CELLS.
__device__ __forceinline__ int diagonal(int apart) { return apart * HEIGHT - apart * (apart - 1) / 2; }
constexpr int MATRICES = APART * HEIGHT - APART * (APART - 1) / 2;

// What lies in shared memory.
struct Room {
  float *along;                                          // [MATRICES][CELLS]; later scratch of the warps
  uint4 *rows;                                           // [TAP_PARTS][ALL_ROWS][32], the Toeplitz matrices as fragments
  float *weights, *outputs, *seen, *total;               // [ALL_TAPS] twice; [WINDOW][WINDOW]; [HEIGHT + 1][WIDTH + 1]
};

__device__ __forceinline__ Room room() {
  Room r;
  r.rows = (uint4*)smem;
  r.along = (float*)(r.rows + TAP_PARTS * ALL_ROWS * 32);
  r.weights = r.along + max(MATRICES * CELLS, WINDOW * SCRATCH);
  r.outputs = r.weights + ALL_TAPS, r.seen = r.outputs + ALL_TAPS, r.total = r.seen + WINDOW * WINDOW;
  return r;
}

// A term's rows as matrices: rows are columns of the output, columns those of the input.
template <int TERM> __device__ __forceinline__ void lay_out(const Room& r, const W* const (&w)[6], int channel) {
  if constexpr (TERM < TERMS) {
    constexpr int K = KERNEL[TERM], D = DILATION[TERM];
    const int lane = threadIdx.x % 32;
    const W* taps = w[TERM] + (i64)channel * (K * K);
    const auto tap = [&](int row, int column) {
      const bool there = column % D == 0 && column >= -(K / 2 * D) && column <= K / 2 * D;
      return there ? to_float(from_float<T>(to_float(taps[row * K + K / 2 + column / D]))) : 0.f;
    };
    for (int row = threadIdx.x / 32; row < K; row += THREADS / 32) {
      uint4 found[TAP_PARTS];
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int column = (lane % 4 * 2 + e / 2 * 8) - (lane / 4 + e % 2 * 8);
        u32 parts[TAP_PARTS];
        split(parts, tap(row, column), tap(row, column + 1));
#pragma unroll
        for (int p = 0; p < TAP_PARTS; p++) word(found[p], e) = parts[p];
      }
#pragma unroll
      for (int p = 0; p < TAP_PARTS; p++) r.rows[(p * ALL_ROWS + rows_before(TERM) + row) * 32 + lane] = found[p];
    }
    for (int i = threadIdx.x; i < K * K; i += THREADS) r.weights[taps_before(TERM) + i] = to_float(from_float<T>(to_float(taps[i])));
    lay_out<TERM + 1>(r, w, channel);
  }
}

// The row of a term that stands in that row of the window, from its centre; -1: none.
template <int TERM> __device__ __forceinline__ int row_of(int row) {
  constexpr int K = KERNEL[TERM], D = DILATION[TERM];
  return row % D == 0 && row >= -(K / 2 * D) && row <= K / 2 * D ? row / D + K / 2 : -1;
}

template <int TERM> __device__ __forceinline__ void multiply(float (&acc)[TERMS][2][4], const Room& r, const u32 (&h)[4][3], int row, int other) {
  if constexpr (TERM < TERMS) {
    const int mine = row_of<TERM>(row), from = row_of<TERM>(other);
    if (mine >= 0 && from >= 0) {
#pragma unroll
      for (int p = 0; p < TAP_PARTS; p++) {
        const uint4 v = r.rows[(p * ALL_ROWS + rows_before(TERM) + from) * 32 + threadIdx.x % 32];
        const u32 a[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int part = 2; part >= 0; part--) {
          mma_16816<bf16>(acc[TERM][0], a, h[0][part], h[1][part]);
          mma_16816<bf16>(acc[TERM][1], a, h[2][part], h[3][part]);
        }
      }
    }
    multiply<TERM + 1>(acc, r, h, row, other);
  }
}

// The sums of the diagonals of one row of each term.
template <int TERM> __device__ __forceinline__ void put(const float (&acc)[TERMS][2][4], const Room& r, float* scratch, int row) {
  if constexpr (TERM < TERMS) {
    constexpr int K = KERNEL[TERM], D = DILATION[TERM];
    const int mine = row_of<TERM>(row), lane = threadIdx.x % 32;
    if (mine >= 0) {
#pragma unroll
      for (int e = 0; e < 8; e++) scratch[(lane / 4 + e / 2 % 2 * 8) * SCRATCH_PITCH + e / 4 * 8 + lane % 4 * 2 + e % 2] = acc[TERM][e / 4][e % 4];
      __syncwarp();
      if (lane < K) {
        const int column = (lane - K / 2) * D;
        float sum = 0.f;
        for (int out = max(0, -column); out < min(WIDTH, WIDTH - column); out++) sum += scratch[out * SCRATCH_PITCH + out + column];
        r.outputs[taps_before(TERM) + mine * K + lane] = sum;
      }
      __syncwarp();
    }
    put<TERM + 1>(acc, r, scratch, row);
  }
}

// gram: [c, pairs of rows, w, w], total: [c, h, w]; to sums, [c, count], and moments, [TERMS, 2, c].
extern "C" __global__ void __launch_bounds__(THREADS)
    digest(const float* __restrict__ gram, const float* __restrict__ total, const W* w0, const W* w1, const W* w2, const W* w3, const W* w4, const W* w5,
           float* __restrict__ sums, float* __restrict__ moments, int c, int count) {
  const W* const w[6] = {w0, w1, w2, w3, w4, w5};
  const Room r = room();
  const int channel = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  gram += (i64)channel * (HEIGHT * (HEIGHT + 1) / 2) * CELLS, total += (i64)channel * (HEIGHT * WIDTH), sums += (i64)channel * count;
  for (int i = threadIdx.x; i < APART * CELLS; i += THREADS) {
    const int apart = i / CELLS, cell = i % CELLS;
    float* to = r.along + diagonal(apart) * CELLS + cell;
    float value[HEIGHT], sum = 0.f;
#pragma unroll
    for (int u = 0; u < HEIGHT; u++) value[u] = u + apart < HEIGHT ? __ldg(gram + (u * HEIGHT - u * (u - 1) / 2 + apart) * CELLS + cell) : 0.f;
#pragma unroll
    for (int u = 0; u < HEIGHT; u++) {
      sum += value[u];
      if (u + apart < HEIGHT) to[u * CELLS] = sum;
    }
  }
  lay_out<0>(r, w, channel);
  integrate(r.total, total);
  for (int i = threadIdx.x; i < WINDOW * WINDOW; i += THREADS) sums[ALL_TAPS + i] = r.seen[i] = seen_by(r.total, i / WINDOW - REACH, i % WINDOW - REACH);

  float acc[TERMS][2][4] = {};
  const int row = warp - REACH;
  for (int other = -REACH; other <= REACH; other++) {
    const int apart = abs(row - other), least = min(row, other), first = max(0, least), last = min(HEIGHT - 1 + least, HEIGHT - 1 - apart);
    if (first > last) continue;
    const float *to = r.along + (diagonal(apart) + last) * CELLS, *from = to + (first - 1 - last) * CELLS;
    const int of_input = other <= row ? WIDTH : 1, of_seen = WIDTH + 1 - of_input;  // the steps of both columns in a product
    u32 h[4][3];
#pragma unroll
    for (int e = 0; e < 4; e++) {
      float value[2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int input = e % 2 * 8 + lane % 4 * 2 + i, seen = e / 2 * 8 + lane / 4, at = input * of_input + seen * of_seen;
        value[i] = input < WIDTH && seen < WIDTH ? to[at] - (first ? from[at] : 0.f) : 0.f;
      }
      split(h[e], value[0], value[1]);
    }
    multiply<0>(acc, r, h, row, other);
  }
  __syncthreads();
  put<0>(acc, r, r.along + warp * SCRATCH, row);
  __syncthreads();
  for (int i = threadIdx.x; i < ALL_TAPS; i += THREADS) sums[i] = r.outputs[i];
#pragma unroll
  for (int t = 0; t < TERMS; t++) {
    if (warp != t % WINDOW) continue;
    const int k = KERNEL[t], d = DILATION[t], edge = REACH - k / 2 * d;
    float sum = 0.f, squares = 0.f;
    for (int i = lane; i < k * k; i += 32) {
      const float tap = r.weights[taps_before(t) + i];
      sum += tap * r.seen[(edge + i / k * d) * WINDOW + edge + i % k * d], squares += tap * r.outputs[taps_before(t) + i];
    }
#pragma unroll
    for (int mask = 16; mask; mask /= 2) sum += shfl_xor(sum, mask), squares += shfl_xor(squares, mask);
    if (lane == 0) moments[2 * t * c + channel] = sum, moments[(2 * t + 1) * c + channel] = squares;
  }
}
