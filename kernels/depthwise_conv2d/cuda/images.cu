// Depthwise convolution of channels-last maps of up to sixteen rows and columns in 16-bit types on tensor cores, forward (with flipped taps:
// gradient of the input).
//
// A row of such a map is one or two blocks of eight columns, and what a block of the input adds to a block of the output is an 8x8 piece of a
// banded Toeplitz matrix, which depends on how far one lies from the other alone. So a lane keeps its two taps of every piece, and multiplies
// two by two pieces with two rows of eight images, which are the columns of the product: a row is read from shared memory once, for all kernel
// rows, and all outputs of a channel of eight images stand in registers until they take its place.
//
// Defined from outside: KH, KW, MIN_BLOCKS, SHARED_BYTES, and what image_planes.cuh wants.

constexpr int TAPS = KH * KW, PAIRS = (TH + 1) / 2;      // of rows
static_assert(CB * SET * 2 + CB * TAPS * 2 == SHARED_BYTES, "gpu_tiles.py counts otherwise");

// A lane's two taps of each piece: of kernel row kh, from an input block `apart` blocks to the right of the output's.
struct Pieces {
  u32 v[KH][PIECES];

  template <bool FLIP> __device__ __forceinline__ void read(const T* taps) {
    const int lane = threadIdx.x % 32;
    if (FLIP) taps += TAPS - 1;
#pragma unroll
    for (int apart = -FAR; apart <= FAR; apart++) {
      const int kw = KW / 2 + 8 * apart + lane % 4 * 2 - lane / 4, low = min(max(kw, 0), KW - 1), high = min(max(kw + 1, 0), KW - 1);
      const u32 mask = (low == kw ? 0xffffu : 0u) | (high == kw + 1 ? 0xffff0000u : 0u);
      const T *of_low = FLIP ? taps - low : taps + low, *of_high = FLIP ? taps - high : taps + high;
#pragma unroll
      for (int kh = 0; kh < KH; kh++) {
        const int row = FLIP ? -kh * KW : kh * KW;
        v[kh][apart + FAR] = ((u32)of_low[row].bits | (u32)of_high[row].bits << 16) & mask;
      }
    }
  }
  // What input row `in` adds to output row `out`.
  __device__ __forceinline__ u32 of(int in, int out, int apart) const {
    const int kh = in - out + KH / 2;
    return kh >= 0 && kh < KH && in < TH && out < TH ? v[kh >= 0 && kh < KH ? kh : 0][apart + FAR] : 0u;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    forward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y, float* __restrict__ sums, int n, int c, int, int, int flip) {
  overlap_launches();
  T* planes = (T*)smem;
  T* taps = planes + CB * SET;
  const int groups = (c + CB - 1) / CB, channel0 = blockIdx.x % groups * CB, image0 = blockIdx.x / groups * 8, channels = min(CB, c - channel0);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int i = threadIdx.x; i < channels * TAPS / 8; i += THREADS) cp_async_16(taps + 8 * i, w + (i64)channel0 * TAPS + 8 * i, true);
  cp_async_commit();
#pragma unroll 1
  for (int first = 0; first < TURNS; first += HELD) {
    Loader<SET> input;
    input.fetch(x, first, image0, channel0, n, c);
    input.commit(planes, first);
  }
  cp_async_wait<0>();
  __syncthreads();
#pragma unroll 1
  for (int channel = threadIdx.x / 32; channel < channels; channel += WARPS) {
    T* plane = planes + channel * SET;
    Pieces pieces;
    if (flip) pieces.read<true>(taps + channel * TAPS);
    else pieces.read<false>(taps + channel * TAPS);
    const float start = bias ? to_float(bias[channel0 + channel]) : 0.f;
    float acc[PAIRS][BLOCKS][4];                         // of two rows: column g of the images in places 2t and 2t + 1
#pragma unroll
    for (int out = 0; out < PAIRS; out++)
#pragma unroll
      for (int j = 0; j < BLOCKS; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) acc[out][j][e] = start;
#pragma unroll
    for (int in = 0; in < PAIRS; in++) {
      u32 b[4];
      ldmatrix_x4(b, matrices_from(plane, 2 * in * BLOCKS));
#pragma unroll
      for (int out = 0; out < PAIRS; out++) {
        if (2 * (in - out) - 1 > KH / 2 || 2 * (in - out) + 1 < -(KH / 2)) continue;
#pragma unroll
        for (int i = 0; i < BLOCKS; i++)
#pragma unroll
          for (int j = 0; j < BLOCKS; j++) {
            const u32 a[4] = {pieces.of(2 * in, 2 * out, i - j), pieces.of(2 * in, 2 * out + 1, i - j), pieces.of(2 * in + 1, 2 * out, i - j),
                              pieces.of(2 * in + 1, 2 * out + 1, i - j)};
            mma_16816<T>(acc[out][j], a, b[i], 2 * in + 1 < TH ? b[BLOCKS + i] : 0u);
          }
      }
    }
    __syncwarp();
    float total[2] = {0.f, 0.f};
#pragma unroll
    for (int row = 0; row < TH; row++)
#pragma unroll
      for (int j = 0; j < BLOCKS; j++) {
        const u32 packed = pack2<T>(acc[row / 2][j][row % 2 * 2], acc[row / 2][j][row % 2 * 2 + 1]);
        T* to = plane + (row * BLOCKS + j) * 64 + 16 * t + g;
        to[0].bits = (u16)packed, to[8].bits = (u16)(packed >> 16);
        if (sums && 8 * j + g < TW) total[0] += lo_float<T>(packed), total[1] += hi_float<T>(packed);
      }
    if (!sums) continue;
#pragma unroll
    for (int e = 0; e < 2; e++) {
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) total[e] += shfl_xor(total[e], mask);
      const int image = image0 + image_of(2 * t + e, channel);
      if (g == 0 && image < n) sums[(i64)image * c + channel0 + channel] = total[e];
    }
  }
  __syncthreads();
  store_planes(y, planes, image0, channel0, n, c);
}
