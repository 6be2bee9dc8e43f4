// Depthwise convolution of channels-last maps of up to four blocks of eight columns in 16-bit types on tensor cores, forward (with flipped
// taps: gradient of the input).
//
// What a block of eight columns of the input adds to a block of the output is an 8x8 piece of a banded Toeplitz matrix, which depends on how far
// one lies from the other alone. So a lane keeps its two taps of every piece, and multiplies two by two pieces with two rows of eight strands
// (images, or parts of one), which are the columns of the product: a row is read from shared memory once, for all kernel rows, and all outputs
// of a channel of eight strands stand in registers until they take its place.
//
// Defined from outside: MIN_BLOCKS, SHARED_BYTES, and what image_planes.cuh wants.

constexpr int TAPS = KH * KW, UP = KH / 2, PAIRS = (ROWS + 1) / 2;  // pairs of rows of a strand
constexpr int FIRST = GROUPS == 1 ? 0 : -((UP + 1) / 2), END = GROUPS == 1 ? PAIRS : (ROWS + UP + 1) / 2;  // pairs that are seen
constexpr int STAGE = planes_of(SET), STAGES = AHEAD ? 3 : 1;  // one is stored and one is computed while one is filled
static_assert(STAGES * STAGE * 2 + WAITING * 2 + CB * TAPS * 2 == SHARED_BYTES, "gpu_tiles.py counts otherwise");
static_assert(GROUPS == 1 || ROWS % 2 == 0, "pairs of rows lie in one strand");

// A lane's two taps of each piece: of kernel row kh, from an input block `apart` blocks to the right of the output's.
struct Pieces {
  const T *low[PIECES], *high[PIECES];
  u32 mask[PIECES];
  int step;

  __device__ __forceinline__ Pieces(const T* taps, bool flip) : step(flip ? -KW : KW) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int b = 0; b < PIECES; b++) {
      const int kw = KW / 2 + 8 * (b - FAR) + lane % 4 * 2 - lane / 4, first = min(max(kw, 0), KW - 1), second = min(max(kw + 1, 0), KW - 1);
      mask[b] = (first == kw ? 0xffffu : 0u) | (second == kw + 1 ? 0xffff0000u : 0u);
      low[b] = taps + (flip ? TAPS - 1 - first : first), high[b] = taps + (flip ? TAPS - 1 - second : second);
    }
  }
  __device__ __forceinline__ u32 operator()(int kh, int b) const {
    return kh < 0 || kh >= KH ? 0u : ((u32)low[b][kh * step].bits | (u32)high[b][kh * step].bits << 16) & mask[b];
  }
};

// Two rows of eight strands from `row` on, which may be their neighbours'; of maps that are strands, zeros beyond the border.
template <int N> __device__ __forceinline__ void read_rows(u32 (&b)[N][2], const T* plane, int row) {
  const int lane = threadIdx.x % 32, second = lane / 8 % 2, away = GROUPS == 1 ? 0 : (row + 8 * ROWS) / ROWS - 8;
  const T* from = plane + min(row - away * ROWS + second, ROWS - 1) * BLOCKS * MATRIX + (slot_of(lane % 8) + away) * 8;
#pragma unroll
  for (int i = 0; i < N; i += 2) {
    u32 r[4];
    ldmatrix_x4(r, from + min(i + lane / 16, N - 1) * MATRIX);
    b[i][0] = r[0], b[i][1] = GROUPS > 1 || row + 1 < ROWS ? r[1] : 0u;
    if (i + 1 < N) b[i + 1][0] = r[2], b[i + 1][1] = GROUPS > 1 || row + 1 < ROWS ? r[3] : 0u;
  }
}

// The input's pairs of rows that lie `apart` pairs from the outputs' are all multiplied with the same pieces.
template <class Taps> __device__ __forceinline__ void convolve(float (&acc)[PAIRS][BLOCKS][4], const T* plane, const Taps& tap) {
  u32 b[END - FIRST][BLOCKS][2], last[PIECES];
  if (GROUPS == 1) {
#pragma unroll
    for (int in = 0; in < PAIRS; in++) read_rows(b[in], plane, 2 * in);
  }
#pragma unroll
  for (int p = 0; p < PIECES; p++) last[p] = tap(UP - (UP + 1) / 2 * 2 - 1, p);
#pragma unroll
  for (int apart = -(UP + 1) / 2; apart <= (UP + 1) / 2; apart++) {
#pragma unroll
    for (int in = FIRST; in < END; in++)                 // those that are seen from here on
      if (GROUPS > 1 && (in == PAIRS - 1 + apart || (apart == -(UP + 1) / 2 && in < PAIRS - 1 + apart))) read_rows(b[in - FIRST], plane, 2 * in);
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
      const int kh = 2 * apart + UP;
      const u32 of_same = tap(kh, p), of_next = tap(kh + 1, p), a[4] = {of_same, last[p], of_next, of_same};
      last[p] = of_next;
#pragma unroll
      for (int out = 0; out < PAIRS; out++)
#pragma unroll
        for (int j = 0; j < BLOCKS; j++) {
          const int in = out + apart, i = j + p - FAR;
          if (in < FIRST || in >= END || i < 0 || i >= BLOCKS) continue;
          mma_16816<T>(acc[out][j], a, b[in - FIRST][i][0], b[in - FIRST][i][1]);
        }
    }
  }
}

// Outputs to the place of their inputs; total: their sums over this lane's column, of its two strands.
__device__ __forceinline__ void put_outputs(T* plane, const float (&acc)[PAIRS][BLOCKS][4], float (&total)[2], bool sum) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int row = 0; row < ROWS; row++)
#pragma unroll
    for (int j = 0; j < BLOCKS; j++) {
      const u32 packed = pack2<T>(acc[row / 2][j][row % 2 * 2], acc[row / 2][j][row % 2 * 2 + 1]);
      T* to = plane + (row * BLOCKS + j) * MATRIX + slot_of(2 * t) * 8 + g;
      to[0].bits = (u16)packed, to[8].bits = (u16)(packed >> 16);
      if (!sum || 8 * j + g >= TW) continue;
      if (2 * t % GROUPS * ROWS + row < TH) total[0] += lo_float<T>(packed);
      if ((2 * t + 1) % GROUPS * ROWS + row < TH) total[1] += hi_float<T>(packed);
    }
}

// A channel of eight strands, in place; `sums`, if wanted, of the images' outputs.
template <class Taps> __device__ __forceinline__ void compute(T* plane, const Taps& tap, float start, float* sums, int image0, int n, int c) {
  const int lane = threadIdx.x % 32, t = lane % 4;
  float acc[PAIRS][BLOCKS][4], total[2] = {0.f, 0.f};    // of two rows: column g of strands 2t and 2t + 1
#pragma unroll
  for (int out = 0; out < PAIRS; out++)
#pragma unroll
    for (int j = 0; j < BLOCKS; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[out][j][e] = start;
  convolve(acc, plane, tap);
  __syncwarp();
  put_outputs(plane, acc, total, sums != nullptr);
  if (!sums) return;
  if (GROUPS > 1) total[0] += total[1];
#pragma unroll
  for (int mask = 4; mask < 32; mask *= 2) total[0] += shfl_xor(total[0], mask), total[1] += shfl_xor(total[1], mask);
#pragma unroll
  for (int mask = 1; mask < GROUPS / 2; mask *= 2) total[0] += shfl_xor(total[0], mask);
#pragma unroll
  for (int e = 0; e < (GROUPS > 1 ? 1 : 2); e++) {
    const int image = image0 + (2 * t + e) / GROUPS;
    if (lane < 4 && (2 * t + e) % GROUPS == 0 && image < n) sums[(i64)image * c] = total[e];
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    forward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y, float* __restrict__ sums, int n, int c, int, int, int flip,
            int splits) {
  overlap_launches();
  T* planes = (T*)smem;
  T* taps = planes + STAGES * STAGE + WAITING;
  const int groups = (c + CB - 1) / CB, channel0 = blockIdx.x % groups * CB, channels = min(CB, c - channel0), warp = threadIdx.x / 32;
  int image0 = blockIdx.x / groups * IMAGES;
  for (int i = threadIdx.x; i < channels * TAPS / 8; i += THREADS) cp_async_16(taps + 8 * i, w + (i64)channel0 * TAPS + 8 * i, true);
  cp_async_commit();
  Loader<SET> input;
  if (sums) sums += channel0;
#if AHEAD
  input.waiting = (uint2*)(planes + STAGES * STAGE);
  input.fetch(x, 0, image0, channel0, n, c);
  clear_planes(planes, STAGES * STAGE);
  cp_async_wait<0>();
  __syncthreads();
  input.commit(planes, 0);
  const int channel = min(warp, channels - 1);
  const Pieces pieces(taps + channel * TAPS, flip != 0);
  u32 kept[KH][PIECES];
#pragma unroll
  for (int kh = 0; kh < KH; kh++)
#pragma unroll
    for (int p = 0; p < PIECES; p++) kept[kh][p] = pieces(kh, p);
  const float start = bias ? to_float(bias[channel0 + channel]) : 0.f;
  __syncthreads();
  for (int turn = 0; image0 < n; turn++, image0 += splits * IMAGES) {
    T* now = planes + turn % STAGES * STAGE;
    input.fetch(x, 0, image0 + splits * IMAGES, channel0, n, c);
    if (warp < channels)
      compute(now + plane_of(warp, SET), [&](int kh, int p) { return kh < 0 || kh >= KH ? 0u : kept[kh < 0 || kh >= KH ? 0 : kh][p]; }, start, sums ? sums + warp : nullptr,
              image0, n, c);
    cp_async_wait<0>();
    input.commit(planes + (turn + 1) % STAGES * STAGE, 0);
    __syncthreads();
    store_planes(y, now, image0, channel0, n, c);
  }
#else
#pragma unroll 1
  for (int first = 0; first < TURNS; first += HELD) {
    input.fetch(x, first, image0, channel0, n, c);
    input.commit(planes, first);
  }
  cp_async_wait<0>();
  __syncthreads();
#pragma unroll 1
  for (int channel = warp; channel < channels; channel += WARPS)
    compute(planes + plane_of(channel, SET), Pieces(taps + channel * TAPS, flip != 0), bias ? to_float(bias[channel0 + channel]) : 0.f, sums ? sums + channel : nullptr,
            image0, n, c);
  __syncthreads();
  store_planes(y, planes, image0, channel0, n, c);
#endif
}
