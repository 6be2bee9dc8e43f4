// As digest.cu, for maps of 17 to 32 columns, whose pairs of rows are too many to be kept one by one: `shifted` sums
// those that lie as far apart over the map, and gram.cu leaves those of the first and of the last REACH rows, which are
// subtracted where a tap does not see them.
//
// A block has a term of a channel and every SPLITS-th distance of rows, a warp a row of the term. One of those with the
// fewest distances also finds what taps see.

constexpr int TILES = 2, BLOCKS = 4, PITCH = 33, SCRATCH = 16 * PITCH;  // sixteens of columns, and eights
constexpr int BORDER = REACH * (REACH + 1) / 2;          // pairs of rows at a border

// Pieces of a term's rows as matrices: rows are sixteen columns of the output, columns sixteen of the input, which
// stand `apart` sixteens further. [K][3][TAP_PARTS][32]
__device__ __forceinline__ void lay_out(uint4* pieces, const float* window, int k, int d) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int i = threadIdx.x / 32; i < 3 * k; i += THREADS / 32) {
    const int apart = i % 3 - 1, row = (i / 3 - k / 2) * d;
    uint4 found[TAP_PARTS];
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int column = 16 * apart + (lane % 4 * 2 + e / 2 * 8) - (lane / 4 + e % 2 * 8);
      u32 parts[TAP_PARTS];
      split(parts, at_place(window, row, column), at_place(window, row, column + 1));
#pragma unroll
      for (int p = 0; p < TAP_PARTS; p++) word(found[p], e) = parts[p];
    }
#pragma unroll
    for (int p = 0; p < TAP_PARTS; p++) pieces[(i * TAP_PARTS + p) * 32 + lane] = found[p];
  }
}

// The sums of products of rows `apart` apart that taps see whose upper row is -REACH .. REACH - apart rows off
// the centre: [WINDOW][CELLS].
__device__ __forceinline__ void stage(float* seen, const float* __restrict__ sums, const float* __restrict__ top,
                                      const float* __restrict__ bottom, int apart, int parts, i64 step) {
  for (int cell = threadIdx.x; cell < CELLS; cell += THREADS) {
    float of_top[REACH], of_bottom[REACH], all = 0.f;
#pragma unroll
    for (int m = 0; m < REACH; m++) {                    // a pair whose upper row is the m-th of the border's
      const int pair = m * REACH - m * (m - 1) / 2 + apart;
      of_top[m] = m + apart < REACH ? __ldg(top + pair * CELLS + cell) : 0.f;
      of_bottom[m] = m + apart < REACH ? __ldg(bottom + pair * CELLS + cell) : 0.f;
    }
#pragma unroll 2
    for (int p = 0; p < parts; p++) all += __ldg(sums + p * step + apart * CELLS + cell);
    seen += cell;
    seen[REACH * CELLS] = all;
    float left = all;
#pragma unroll
    for (int m = 0; m < REACH; m++) {
      left -= of_top[m];
      seen[(REACH + 1 + m) * CELLS] = left;
    }
    left = all;
#pragma unroll
    for (int m = REACH - 1; m >= 0; m--) {
      left -= of_bottom[m];
      seen[m * CELLS] = left;
    }
    seen -= cell;
  }
}

// What each place of the window sees, to `sums`, and the sums of all outputs by it, to `moments`;
// zeros if other blocks do it.
__device__ __forceinline__ void see_window(float* __restrict__ sums, float* __restrict__ moments, float* scratch,
                                           const float* __restrict__ total, const W* const (&w)[6], int channel, int c,
                                           bool sees) {
  const int lane = threadIdx.x % 32;
  if (!sees) {
    if (threadIdx.x < TERMS) moments[2 * threadIdx.x * c + channel] = 0.f;
#pragma unroll 1
    for (int i = threadIdx.x; i < PLACES; i += THREADS) sums[i] = 0.f;
    return;
  }
  float *windows = scratch, *of_places = windows + TERMS * PLACES, *image = of_places + PLACES;
  load_windows(windows, w, channel);
  integrate(image, total);
#pragma unroll 1
  for (int i = threadIdx.x; i < PLACES; i += THREADS)
    sums[i] = of_places[i] = seen_by(image, i / WINDOW - REACH, i % WINDOW - REACH);
  __syncthreads();
#pragma unroll 1
  for (int t = threadIdx.x / 32; t < TERMS; t += THREADS / 32) {
    float sum = 0.f;
#pragma unroll 1
    for (int i = lane; i < PLACES; i += 32) sum += windows[t * PLACES + i] * of_places[i];
#pragma unroll
    for (int mask = 16; mask; mask /= 2) sum += shfl_xor(sum, mask);
    if (lane == 0) moments[2 * t * c + channel] = sum;
  }
}

// shifts: [parts, c, APART, w, w], as `shifted` leaves them; top, bottom: [c, BORDER, w, w]; total: [c, h, w]; to sums,
// [SPLITS, c, count], and moments, [SPLITS, TERMS, 2, c].
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    digest(const float* __restrict__ shifts, const float* __restrict__ top, const float* __restrict__ bottom,
           const float* __restrict__ total, const W* w0, const W* w1, const W* w2, const W* w3, const W* w4,
           const W* w5, float* __restrict__ sums, float* __restrict__ moments, int c, int count, int parts) {
  const W* const w[6] = {w0, w1, w2, w3, w4, w5};
  uint4* pieces = (uint4*)smem;                           // [WINDOW][3][TAP_PARTS][32]
  float* seen = (float*)(pieces + WINDOW * 3 * TAP_PARTS * 32);  // see `stage`; later scratch of the warps
  float *window = seen + max(WINDOW * CELLS, WINDOW * SCRATCH), *outputs = window + PLACES;
  const int channel = blockIdx.x % c, term = blockIdx.x / c % TERMS, first = blockIdx.x / c / TERMS,
            lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const W* mine = w[0];
  int k = KERNEL[0], d = DILATION[0], before = 0;
#pragma unroll
  for (int t = 1; t < TERMS; t++)
    if (term == t) mine = w[t], k = KERNEL[t], d = DILATION[t], before = taps_before(t);
  const int edge = k / 2 * d, row = warp * d - edge;
  sums += ((i64)first * c + channel) * count, moments += first * (TERMS * 2 * c);
#pragma unroll 1
  for (int i = threadIdx.x; i < 2 * PLACES; i += THREADS) window[i] = 0.f;  // of the outputs as well
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < k * k; i += THREADS) load_tap(window, mine + (i64)channel * k * k, i, k, d);
  if (term == TERMS - 1)
    see_window(sums + ALL_TAPS, moments, seen, total + (i64)channel * (HEIGHT * WIDTH), w, channel, c,
               first == SPLITS - 1);
  __syncthreads();
  lay_out(pieces, window, k, d);

  float acc[TILES][BLOCKS][4] = {};
  for (int apart = first * d; apart < APART && apart <= 2 * edge; apart += SPLITS * d) {
    __syncthreads();
    stage(seen, shifts + (i64)channel * (APART * CELLS), top + (i64)channel * (BORDER * CELLS),
          bottom + (i64)channel * (BORDER * CELLS), apart, parts, (i64)c * (APART * CELLS));
    __syncthreads();
    if (warp >= k) continue;
#pragma unroll 1
    for (int side = -1; side <= 1; side += 2) {
      const int other = row + side * apart;
      if (other < -edge || other > edge || (side > 0 && apart == 0)) continue;
      const float* from = seen + (min(row, other) + REACH) * CELLS;
      // the steps of both columns in a product
      const int of_input = side < 0 ? WIDTH : 1, of_seen = WIDTH + 1 - of_input;
#pragma unroll 1
      for (int tile = 0; tile < TILES; tile++)           // of the input's columns
#pragma unroll
        for (int p = 0; p < TAP_PARTS; p++) {
          u32 a[TILES][4];
#pragma unroll
          for (int out = 0; out < TILES; out++) {
            const uint4 v = pieces[(((other + edge) / d * 3 + tile - out + 1) * TAP_PARTS + p) * 32 + lane];
            a[out][0] = v.x, a[out][1] = v.y, a[out][2] = v.z, a[out][3] = v.w;
          }
#pragma unroll
          for (int j = 0; j < BLOCKS; j++) {
            u32 h[2][3];
#pragma unroll
            for (int e = 0; e < 2; e++) {
              float value[2];
#pragma unroll
              for (int i = 0; i < 2; i++) {
                const int input = 16 * tile + 8 * e + lane % 4 * 2 + i, column = 8 * j + lane / 4;
                value[i] = input < WIDTH && column < WIDTH ? from[input * of_input + column * of_seen] : 0.f;
              }
              split(h[e], value[0], value[1]);
            }
#pragma unroll
            for (int part = 2; part >= 0; part--)
#pragma unroll
              for (int out = 0; out < TILES; out++) mma_16816<bf16>(acc[out][j], a[out], h[0][part], h[1][part]);
          }
        }
    }
  }
  __syncthreads();
  if (warp < k) {
    float *scratch = seen + warp * SCRATCH, sum = 0.f;
    const int column = (lane - k / 2) * d;
#pragma unroll
    for (int out = 0; out < TILES; out++) {
#pragma unroll
      for (int j = 0; j < BLOCKS; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          scratch[(lane / 4 + e / 2 * 8) * PITCH + 8 * j + lane % 4 * 2 + e % 2] = acc[out][j][e];
      __syncwarp();
      if (lane < k)
        for (int i = max(0, -column - 16 * out); i < min(16, min(WIDTH, WIDTH - column) - 16 * out); i++)
          sum += scratch[i * PITCH + 16 * out + i + column];
      __syncwarp();
    }
    if (lane < k) sums[before + warp * k + lane] = outputs[(row + REACH) * WINDOW + column + REACH] = sum;
  }
  __syncthreads();
  if (warp == 0) {
    float squares = 0.f;
#pragma unroll 1
    for (int i = lane; i < PLACES; i += 32) squares += window[i] * outputs[i];
#pragma unroll
    for (int mask = 16; mask; mask /= 2) squares += shfl_xor(squares, mask);
    if (lane == 0) moments[(2 * term + 1) * c + channel] = squares;
  }
}
