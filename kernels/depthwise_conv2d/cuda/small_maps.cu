// Depthwise convolution of maps of up to eight rows and columns in 16-bit types on tensor cores, forward (with flipped
// taps: input gradient), Hopper and later. As images.cu, with the copy engine instead of threads and 8x8 matrices
// instead of words, for maps of either layout.
//
// A row of a map is one block of eight columns, and what a row of the input adds to a row of the output is an
// 8x8 piece of a banded Toeplitz matrix. Two by two pieces are multiplied with two rows of eight images, which
// are the columns of the product.
//
// Defined at compile time: MIN_BLOCKS, SHARED_BYTES, and what small_maps.cuh needs.

constexpr int WARPS = IMAGES, THREADS = 32 * WARPS, PAIRS = (TH + 1) / 2;  // pairs of rows
static_assert((STAGE + CB * PLANE + CB * TAPS) * 2 + 8 == SHARED_BYTES, "gpu_tiles.py counts otherwise");

// A lane's two taps of each kernel row's piece, twice, by instructions that differ: the compiler would make copies of a
// register that stands in two places. Where a piece reaches beyond the kernel only at columns that no map has, anything
// but infinities may stand there.
template <bool FLIP> struct Pieces {
  static constexpr bool BAND = TW - 1 > KW / 2;
  const T *low, *high;
  u32 select, turned;

  __device__ __forceinline__ Pieces(const T* taps) {
    const int lane = threadIdx.x % 32, kw = KW / 2 + lane % 4 * 2 - lane / 4, first = min(max(kw, 0), KW - 1),
              second = min(max(kw + 1, 0), KW - 1);
    low = taps + (FLIP ? TAPS - 1 - first : first), high = taps + (FLIP ? TAPS - 1 - second : second);
    select = (first == kw ? 0x10 : 0x32) | (second == kw + 1 ? 0x5400 : 0x7600);
    turned = select ^ 0x4444;
  }
  __device__ __forceinline__ void read(u32& one, u32& other, int kh) const {
    one = other = 0u;
    if (kh < 0 || kh >= KH) return;
    const u32 l = low[FLIP ? -kh * KW : kh * KW].bits, h = high[FLIP ? -kh * KW : kh * KW].bits;
    one = prmt(l, h, BAND ? select : 0x5410), other = prmt(h, l, BAND ? turned : 0x1054);
  }
};

// The input's pairs of rows that lie `apart` pairs from the outputs' are all multiplied with the same pieces.
template <bool FLIP> __device__ __forceinline__ void convolve(float (&acc)[PAIRS][4], const T* plane, const T* taps) {
  const Pieces<FLIP> tap(taps);
  u32 b[PAIRS + 1][2];
#pragma unroll
  for (int in = 0; in < PAIRS; in += 2) {
    u32 r[4];
    ldmatrix_x4(r, plane + 2 * in * MATRIX + threadIdx.x % 32 * 8);
    b[in][0] = r[0], b[in][1] = 2 * in + 1 < TH ? r[1] : 0u, b[in + 1][0] = r[2],
    b[in + 1][1] = 2 * in + 3 < TH ? r[3] : 0u;
  }
  constexpr int APART = (UP + 1) / 2;
  u32 last, unused;
  tap.read(last, unused, UP - 2 * APART - 1);
#pragma unroll
  for (int apart = -APART; apart <= APART; apart++) {
    const int kh = 2 * apart + UP;
    u32 a[4];
    a[1] = last;
    tap.read(a[0], a[3], kh);
    tap.read(a[2], last, kh + 1);
#pragma unroll
    for (int out = 0; out < PAIRS; out++)
      if (out + apart >= 0 && out + apart < PAIRS) mma_16816<T>(acc[out], a, b[out + apart][0], b[out + apart][1]);
  }
}

__device__ __forceinline__ u32 packed_row(const float (&acc)[PAIRS][4], int row) {
  return pack2<T>(acc[row / 2][row % 2 * 2], acc[row / 2][row % 2 * 2 + 1]);
}

// The outputs of the warp's channel, column g of images 2t and 2t + 1: channels last to its
// plane, contiguous to its maps.
__device__ __forceinline__ void put_outputs(T* plane, T* maps, const float (&acc)[PAIRS][4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if (LAST) {
#pragma unroll
    for (int row = 0; row < TH; row += 4) {
      u32 r[4];
#pragma unroll
      for (int i = 0; i < 4; i++) r[i] = packed_row(acc, min(row + i, TH - 1));
      stmatrix_x4_trans(plane + row * MATRIX + lane * 8, r);
    }
  } else if (g < TW) {
    T* to = maps + 2 * t * PITCH + g;
#pragma unroll
    for (int row = 0; row < TH; row++) {
      const u32 two = packed_row(acc, row);
      to[row * TW].bits = (u16)two, to[PITCH + row * TW].bits = (u16)(two >> 16);
    }
  }
}

// Sums of the outputs over the map, as squeeze-excite needs them.
__device__ __forceinline__ void put_sums(float* sums, const float (&acc)[PAIRS][4], int image0, int channel, int n,
                                         int c) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  float total[2] = {0.f, 0.f};
#pragma unroll
  for (int row = 0; row < TH; row++)
    if (g < TW) total[0] += lo_float<T>(packed_row(acc, row)), total[1] += hi_float<T>(packed_row(acc, row));
#pragma unroll
  for (int e = 0; e < 2; e++) {
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) total[e] += shfl_xor(total[e], mask);
    if (g == 0 && image0 + 2 * t + e < n) sums[(i64)(image0 + 2 * t + e) * c + channel] = total[e];
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    forward(const __grid_constant__ Source x, const T* __restrict__ w, const T* __restrict__ bias,
            const __grid_constant__ Result y, float* __restrict__ sums, int n, int c, int, int, int flip) {
  T *stage = (T*)smem, *planes = stage + STAGE, *taps = planes + CB * PLANE;
  u64* full = (u64*)(taps + CB * TAPS);
  const int groups = (c + CB - 1) / CB, channel0 = blockIdx.x % groups * CB, image0 = blockIdx.x / groups * IMAGES,
            channels = min(CB, c - channel0);
  const int warp = uniform(threadIdx.x / 32);
  if (threadIdx.x == 0) {
    prepare(x), prepare(y);
    make_bytes_barrier(full);
  }
  __syncthreads();
  overlap_launches();
  if (threadIdx.x % 32 == 0) {
    if (warp == 0) expect_bytes(full, bytes_of_stage(image0, channel0, n, c) + channels * TAPS * 2);
    order_image(stage, x, warp, image0, channel0, n, c, full);
    if (warp == 1) bulk_copy(taps, w + (i64)channel0 * TAPS, channels * TAPS * 2, full);
  }
  __syncthreads();
  wait_bytes(full, 0);
  spread(planes, stage, warp);
  __syncthreads();
#pragma unroll 1
  for (int channel = warp; channel < channels; channel += WARPS) {
    T* plane = planes + channel * PLANE;
    const float start = bias ? to_float(bias[channel0 + channel]) : 0.f;
    float acc[PAIRS][4];                                 // of two rows: column g of images 2t and 2t + 1
#pragma unroll
    for (int out = 0; out < PAIRS; out++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[out][e] = start;
    if (flip) convolve<true>(acc, plane, taps + channel * TAPS);
    else convolve<false>(acc, plane, taps + channel * TAPS);
    put_outputs(plane, stage + channel * TH * TW, acc);
    if (sums) put_sums(sums, acc, image0, channel0 + channel, n, c);
  }
  if (LAST) {
    __syncthreads();
    gather_cells(stage, planes, warp);
  }
  publish_shared();
  __syncthreads();
  if (threadIdx.x % 32) return;
#if LAST
  if (warp == 0) tensor_store<TH, 8, 2, IMAGES>(y, stage, channel0, 0, 0, image0);
#else
  if (image0 + warp < n)
    bulk_store(y + ((i64)(image0 + warp) * c + channel0) * (TH * TW), stage + warp * PITCH, channels * TH * TW * 2);
#endif
  commit_stores();
  wait_stores_read<0>();
}
