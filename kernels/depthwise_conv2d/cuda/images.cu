// Depthwise convolution of channels-last maps of up to eight rows and columns in 16-bit types on tensor cores, forward (with flipped taps:
// gradient of the input).
//
// A row of such a map is one block of eight columns, and what a row of the input adds to a row of the output is an 8x8 piece of a banded
// Toeplitz matrix, which depends on how far one lies from the other alone. So a lane keeps its two taps of every kernel row, and multiplies two
// by two pieces with two rows of eight images, which are the columns of the product: a row is read from shared memory once, for all kernel
// rows, and all outputs of a channel of eight images stand in registers until they take its place.
//
// Defined from outside: T, KH, KW, TH and TW (rows and columns of a map), WARPS, MIN_BLOCKS, SHARED_BYTES.

extern __shared__ unsigned char smem[];

constexpr int CB = 16, IMAGES = 8, THREADS = 32 * WARPS; // channels (a sector of memory) and images of a block of threads
constexpr int ROWS = (TH + 1) / 2 * 2, PAIRS = ROWS / 2;
constexpr int IMAGE = 8 * (ROWS + 1);                   // elements; an odd count of 16 bytes: eight images hit all banks
constexpr int PLANE = IMAGES * IMAGE + 16;               // planes that lie side by side begin eight banks apart
constexpr int TAPS = KH * KW;
static_assert(TH <= 8 && TW <= 8 && CB * PLANE * 2 + CB * TAPS * 2 == SHARED_BYTES, "gpu_tiles.py counts otherwise");

// Four channels of two columns: what a thread moves at a time. Channels that are loaded together lie in different planes, four apart.
struct Unit { int quad, column, row, image; };

__device__ __forceinline__ Unit unit_of(int u) { return {u % 4, u / 4 % 4 * 2, u / 16 % ROWS, u / 16 / ROWS}; }
__device__ __forceinline__ int plane_of(int channel) { return (channel % 4 * 4 + channel / 4) * PLANE; }
__device__ __forceinline__ int place_of(const Unit& unit) { return unit.quad * PLANE + unit.image * IMAGE + unit.row * 8 + unit.column; }
constexpr int UNITS = IMAGES * ROWS * 16 / THREADS, TOGETHER = UNITS < 7 ? UNITS : 7;  // of a thread; that are on their way at once
static_assert(IMAGES * ROWS * 16 % THREADS == 0, "threads take as many units each");

__device__ __forceinline__ void load_planes(T* planes, const T* __restrict__ x, int image0, int channel0, int n, int c) {
#pragma unroll 1
  for (int first = 0; first < UNITS; first += TOGETHER) {
    uint2 held[TOGETHER][2];
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
      const Unit unit = unit_of(threadIdx.x + (first + i) * THREADS);
      const bool there = first + i < UNITS && image0 + unit.image < n && unit.row < TH && channel0 + 4 * unit.quad < c;
      const T* from = x + (((i64)(image0 + unit.image) * TH + unit.row) * TW + unit.column) * c + channel0 + 4 * unit.quad;
      held[i][0] = there && unit.column < TW ? __ldg((const uint2*)from) : make_uint2(0, 0);
      held[i][1] = there && unit.column + 1 < TW ? __ldg((const uint2*)(from + c)) : make_uint2(0, 0);
    }
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {                 // a word holds two channels of one column; a plane wants two columns of one channel
      if (first + i >= UNITS) break;
      u32* to = (u32*)(planes + place_of(unit_of(threadIdx.x + (first + i) * THREADS)));
      to[0] = prmt(held[i][0].x, held[i][1].x, 0x5410);
      to[4 * PLANE / 2] = prmt(held[i][0].x, held[i][1].x, 0x7632);
      to[8 * PLANE / 2] = prmt(held[i][0].y, held[i][1].y, 0x5410);
      to[12 * PLANE / 2] = prmt(held[i][0].y, held[i][1].y, 0x7632);
    }
  }
}

__device__ __forceinline__ void store_planes(T* __restrict__ y, const T* planes, int image0, int channel0, int n, int c) {
#pragma unroll TOGETHER
  for (int i = 0; i < UNITS; i++) {
    const Unit unit = unit_of(threadIdx.x + i * THREADS);
    if (image0 + unit.image >= n || unit.row >= TH || channel0 + 4 * unit.quad >= c || unit.column >= TW) continue;
    const u32* from = (const u32*)(planes + place_of(unit));
    const u32 a = from[0], b = from[4 * PLANE / 2], d = from[8 * PLANE / 2], e = from[12 * PLANE / 2];
    T* to = y + (((i64)(image0 + unit.image) * TH + unit.row) * TW + unit.column) * c + channel0 + 4 * unit.quad;
    *(uint2*)to = make_uint2(prmt(a, b, 0x5410), prmt(d, e, 0x5410));
    if (unit.column + 1 < TW) *(uint2*)(to + c) = make_uint2(prmt(a, b, 0x7632), prmt(d, e, 0x7632));
  }
}

// A lane's two taps of each kernel row's piece.
struct Pieces {
  u32 v[KH];

  __device__ __forceinline__ explicit Pieces(const T* taps) {
    const int lane = threadIdx.x % 32, kw = KW / 2 + lane % 4 * 2 - lane / 4;
    const bool low = kw >= 0 && kw < KW, high = kw + 1 >= 0 && kw + 1 < KW;
#pragma unroll
    for (int kh = 0; kh < KH; kh++) v[kh] = (low ? (u32)taps[kh * KW + kw].bits : 0u) | (high ? (u32)taps[kh * KW + kw + 1].bits << 16 : 0u);
  }
  // What input row `in` adds to output row `out`.
  __device__ __forceinline__ u32 of(int in, int out) const {
    const int kh = in - out + KH / 2;
    return kh >= 0 && kh < KH ? v[kh >= 0 && kh < KH ? kh : 0] : 0u;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    forward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y, float* __restrict__ sums, int n, int c, int, int, int flip) {
  overlap_launches();
  T* planes = (T*)smem;
  T* taps = planes + CB * PLANE;
  const int groups = (c + CB - 1) / CB, channel0 = blockIdx.x % groups * CB, image0 = blockIdx.x / groups * IMAGES, channels = min(CB, c - channel0);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int i = threadIdx.x; i < channels * TAPS; i += THREADS)
    taps[flip ? i / TAPS * TAPS + TAPS - 1 - i % TAPS : i].bits = __ldg(&w[(i64)channel0 * TAPS + i].bits);
  load_planes(planes, x, image0, channel0, n, c);
  __syncthreads();
#pragma unroll 1
  for (int channel = threadIdx.x / 32; channel < channels; channel += WARPS) {
    T* plane = planes + plane_of(channel);
    const Pieces pieces(taps + channel * TAPS);
    const float start = bias ? to_float(bias[channel0 + channel]) : 0.f;
    float acc[PAIRS][4];                                 // of two rows: column g of images 2t and 2t + 1
#pragma unroll
    for (int out = 0; out < PAIRS; out++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[out][e] = start;
#pragma unroll
    for (int in = 0; in < PAIRS; in++) {
      u32 b[2];
      ldmatrix_x2(b, plane + lane % 8 * IMAGE + (2 * in + lane / 8 % 2) * 8);
#pragma unroll
      for (int out = 0; out < PAIRS; out++) {
        const u32 a[4] = {pieces.of(2 * in, 2 * out), pieces.of(2 * in, 2 * out + 1), pieces.of(2 * in + 1, 2 * out), pieces.of(2 * in + 1, 2 * out + 1)};
        mma_16816<T>(acc[out], a, b[0], b[1]);
      }
    }
    __syncwarp();
    float total[2] = {0.f, 0.f};
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
      const u32 packed = pack2<T>(acc[row / 2][row % 2 * 2], acc[row / 2][row % 2 * 2 + 1]);
      T* to = plane + 2 * t * IMAGE + 8 * row + g;
      to[0].bits = (u16)packed, to[IMAGE].bits = (u16)(packed >> 16);
      if (row < TH && g < TW) total[0] += lo_float<T>(packed), total[1] += hi_float<T>(packed);
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
