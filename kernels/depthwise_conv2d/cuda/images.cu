// Depthwise convolution of channels-last maps of up to eight rows and columns in 16-bit types on tensor cores, forward
// (with flipped taps: input gradient). On Hopper and later, small_maps.cu does it.
//
// A row of such a map is one block of eight columns, and what a row of the input adds to a row of the output is an 8x8
// piece of a banded Toeplitz matrix, which depends on how far one lies from the other alone. Two by two pieces are
// multiplied with two rows of eight images, which are the columns of the product: a row is read from shared memory
// once, for all kernel rows, and all outputs of a channel of eight images stand in registers until they take its place.
//
// Defined at compile time: MIN_BLOCKS, SHARED_BYTES, and what image_planes.cuh needs.

constexpr int TAPS = KH * KW, UP = KH / 2, PAIRS = (TH + 1) / 2;  // pairs of rows
static_assert(PLANES * 2 + CB * TAPS * 2 == SHARED_BYTES, "gpu_tiles.py counts otherwise");
static_assert(BLOCKS == 1 && GROUPS == 1 && !AHEAD, "a row is a block, a strand an image");

// A lane's two taps of each kernel row's piece.
struct Pieces {
  const T *low, *high;
  u32 mask;
  int step;

  __device__ __forceinline__ Pieces(const T* taps, bool flip) : step(flip ? -KW : KW) {
    const int lane = threadIdx.x % 32, kw = KW / 2 + lane % 4 * 2 - lane / 4, first = min(max(kw, 0), KW - 1),
              second = min(max(kw + 1, 0), KW - 1);
    mask = (first == kw ? 0xffffu : 0u) | (second == kw + 1 ? 0xffff0000u : 0u);
    low = taps + (flip ? TAPS - 1 - first : first), high = taps + (flip ? TAPS - 1 - second : second);
  }
  __device__ __forceinline__ u32 operator()(int kh) const {
    return kh < 0 || kh >= KH ? 0u : ((u32)low[kh * step].bits | (u32)high[kh * step].bits << 16) & mask;
  }
};

// The input's pairs of rows that lie `apart` pairs from the outputs' are all multiplied with the same pieces.
__device__ __forceinline__ void convolve(float (&acc)[PAIRS][4], const T* plane, const Pieces& tap) {
  const int lane = threadIdx.x % 32;
  u32 b[PAIRS][2];
#pragma unroll
  for (int in = 0; in < PAIRS; in++) {
    ldmatrix_x2(b[in], plane + min(2 * in + lane / 8 % 2, TH - 1) * MATRIX + lane % 8 * 8);
    if (2 * in + 1 == TH) b[in][1] = 0u;
  }
  u32 last = tap(UP - (UP + 1) / 2 * 2 - 1);
#pragma unroll
  for (int apart = -(UP + 1) / 2; apart <= (UP + 1) / 2; apart++) {
    const int kh = 2 * apart + UP;
    const u32 same = tap(kh), next = tap(kh + 1), a[4] = {same, last, next, same};
    last = next;
#pragma unroll
    for (int out = 0; out < PAIRS; out++)
      if (out + apart >= 0 && out + apart < PAIRS) mma_16816<T>(acc[out], a, b[out + apart][0], b[out + apart][1]);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    forward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
            float* __restrict__ sums, int n, int c, int, int, int flip) {
  overlap_launches();
  T* planes = (T*)smem;
  T* taps = planes + PLANES;
  const int groups = (c + CB - 1) / CB, channel0 = blockIdx.x % groups * CB, image0 = blockIdx.x / groups * 8,
            channels = min(CB, c - channel0);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int i = threadIdx.x; i < channels * TAPS / 8; i += THREADS)
    cp_async_16(taps + 8 * i, w + (i64)channel0 * TAPS + 8 * i, true);
  cp_async_commit();
  Loader input;
  input.fetch(x, image0, channel0, n, c);
  input.commit(planes);
  cp_async_wait<0>();
  __syncthreads();
#pragma unroll 1
  for (int channel = threadIdx.x / 32; channel < channels; channel += WARPS) {
    T* plane = planes + plane_of(channel);
    const float start = bias ? to_float(bias[channel0 + channel]) : 0.f;
    float acc[PAIRS][4], total[2] = {0.f, 0.f};          // of two rows: column g of images 2t and 2t + 1
#pragma unroll
    for (int out = 0; out < PAIRS; out++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[out][e] = start;
    convolve(acc, plane, Pieces(taps + channel * TAPS, flip != 0));
    __syncwarp();
#pragma unroll
    for (int row = 0; row < TH; row++) {
      const u32 packed = pack2<T>(acc[row / 2][row % 2 * 2], acc[row / 2][row % 2 * 2 + 1]);
      T* to = plane + row * MATRIX + 16 * t + g;
      to[0].bits = (u16)packed, to[8].bits = (u16)(packed >> 16);
      if (sums && g < TW) total[0] += lo_float<T>(packed), total[1] += hi_float<T>(packed);
    }
    if (!sums) continue;
#pragma unroll
    for (int e = 0; e < 2; e++) {
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) total[e] += shfl_xor(total[e], mask);
      if (g == 0 && image0 + 2 * t + e < n) sums[(i64)(image0 + 2 * t + e) * c + channel0 + channel] = total[e];
    }
  }
  __syncthreads();
  store_planes(y, planes, image0, channel0, n, c);
}
