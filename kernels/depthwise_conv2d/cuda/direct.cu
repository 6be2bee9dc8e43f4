// Depthwise convolution in float32 by plain fused multiply-adds, forward (with flipped taps: input gradient) and weight
// gradient. Nothing is rounded to fewer bits on the way, as tensor cores would do.
//
// A lane owns MT output rows by eight columns. The piece of an input row that these columns see is loaded once
// into registers, four elements at a time, and meets the taps of up to MT kernel rows there; the taps are the same
// for all lanes of a warp, so that a load of four costs one access. Rows of a lane stand DIL apart, so that they
// share input rows at any dilation.

extern __shared__ unsigned char smem[];

constexpr int BLOCKS_IN = NT + 2 * SIDE;                 // SIDE: blocks of halo at each side, LB at least
constexpr int COLS_IN = 8 * BLOCKS_IN;
constexpr int PITCH = COLS_IN + 4;                       // four words more: eight lanes in eight rows hit all banks
// groups of rows that a warp takes at a time, all columns of each
constexpr int GROUPS = 32 / NT;
constexpr int STEPS = (TH + MT * DIL - 1) / (MT * DIL);
constexpr int PER_STRIP = STEPS * DIL;                   // groups of a strip
constexpr int SLACK = STEPS * MT * DIL - TH;             // rows that the last groups see too much of
// columns between the first and the last tap that registers hold at once
constexpr int MAX_WINDOW = 56;
constexpr int TAPS_AT_ONCE = (KW - 1) * DIL <= MAX_WINDOW ? KW : DIL <= MAX_WINDOW / 4 ? MAX_WINDOW / DIL / 4 * 4 : 1;
constexpr int WINDOW = (3 + 8 + (TAPS_AT_ONCE - 1) * DIL + 3) / 4 * 4;

// of its strip
__device__ __forceinline__ int first_row(int group) { return group % PER_STRIP / DIL * (MT * DIL) + group % DIL; }

// Elements [0, 4 COUNT) from an address of 16 bytes.
template <int COUNT> __device__ __forceinline__ void load_fours(float* to, const float* from) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    const uint4 v = *(const uint4*)(from + 4 * i);
    to[4 * i] = __uint_as_float(v.x), to[4 * i + 1] = __uint_as_float(v.y), to[4 * i + 2] = __uint_as_float(v.z),
           to[4 * i + 3] = __uint_as_float(v.w);
  }
}

// The columns that taps FIRST ... FIRST + COUNT - 1 see of a row, of which `row` is the first output column's own
// place: tap FIRST + k meets output column e at window[SKIP + k DIL + e].
template <int FIRST, int COUNT> struct Reach {
  static constexpr int START = FIRST * DIL - REACH_COLS;               // relative to the output column
  static constexpr int ALIGNED = (START + 8 * SIDE) / 4 * 4 - 8 * SIDE;
  static constexpr int SKIP = START - ALIGNED;
  static constexpr int LOADS = (SKIP + 8 + (COUNT - 1) * DIL + 3) / 4;
  static __device__ __forceinline__ void load(float (&window)[WINDOW], const float* row) {
    load_fours<LOADS>(window, row + ALIGNED);
  }
};

#ifdef FORWARD
constexpr int ROWS = TH + (KH - 1) * DIL;                // that are loaded
constexpr int STRIDE = ROWS;
constexpr int PLANE = (S * STRIDE + SLACK) * PITCH;
constexpr int TAPS = (KW + 3) / 4 * 4;                   // of a kernel row
using Input = Loader<ROWS, STRIDE, 0, COLS_IN, PITCH, PLANE, PAD_ROWS_MODE, PAD_COLS_MODE>;

__device__ __forceinline__ void copy_taps(float* taps, const float* __restrict__ w, int channel0, int channels,
                                          bool flip) {
  const int count = min(CB, channels - channel0) * KH * KW;
  w += (i64)channel0 * (KH * KW);
  for (int i = threadIdx.x; i < count; i += THREADS) {
    const int channel = i / (KH * KW), tap = i % (KH * KW), to = flip ? KH * KW - 1 - tap : tap;
    taps[(channel * KH + to / KW) * TAPS + to % KW] = w[i];
  }
}

// acc[q] += taps FIRST ... of kernel row i - q times input row i, for each of the lane's rows q
template <int FIRST>
__device__ __forceinline__ void multiply(float (&acc)[MT][8], const float* row, const float* taps, int i) {
  if constexpr (FIRST < KW) {
    constexpr int COUNT = KW - FIRST < TAPS_AT_ONCE ? KW - FIRST : TAPS_AT_ONCE;
    using Seen = Reach<FIRST, COUNT>;
    float window[WINDOW];
    Seen::load(window, row);
#pragma unroll
    for (int q = 0; q < MT; q++) {
      const int kh = i - q;
      if (kh < 0 || kh >= KH) continue;                  // the same for all lanes
      float tap[(COUNT + 3) / 4 * 4];
      if constexpr (FIRST % 4 == 0) load_fours<(COUNT + 3) / 4>(tap, taps + kh * TAPS + FIRST);
      else tap[0] = taps[kh * TAPS + FIRST];
#pragma unroll
      for (int k = 0; k < COUNT; k++)
#pragma unroll
        for (int e = 0; e < 8; e++) acc[q][e] += window[Seen::SKIP + k * DIL + e] * tap[k];
    }
    multiply<FIRST + TAPS_AT_ONCE>(acc, row, taps, i);
  }
}

// One warp, one channel: all strips of its plane. Outputs take the place of the first input row of their window, which
// no group of a later turn sees: theirs begin below, or lie between at another remainder by DIL.
__device__ __forceinline__ void convolve_plane(float* plane, const float* taps, float bias) {
  const int lane = threadIdx.x % 32, j = lane / GROUPS;
#pragma unroll 1
  for (int g0 = 0; g0 < S * PER_STRIP; g0 += GROUPS) {
    const int group = g0 + lane % GROUPS;
    const bool mine = j < NT && group < S * PER_STRIP;
    const int row = mine ? first_row(group) : 0;
    float* place = plane + (mine ? group / PER_STRIP * STRIDE + row : 0) * PITCH + (mine ? 8 * j : 0);
    float acc[MT][8];
#pragma unroll
    for (int q = 0; q < MT; q++)
#pragma unroll
      for (int e = 0; e < 8; e++) acc[q][e] = bias;
#pragma unroll 1
    for (int i = 0; i < KH + MT - 1; i++) multiply<0>(acc, place + i * DIL * PITCH + 8 * SIDE, taps, i);
    __syncwarp();
#pragma unroll
    for (int q = 0; q < MT; q++) {
      if (!mine || row + q * DIL >= TH) continue;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float* a = acc[q] + 4 * half;
        *(uint4*)(place + q * DIL * PITCH + 4 * half) =
            make_uint4(__float_as_uint(a[0]), __float_as_uint(a[1]), __float_as_uint(a[2]), __float_as_uint(a[3]));
      }
    }
    __syncwarp();
  }
}

// A block keeps its channels' taps and visits one group of strips after the other.
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    forward(const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ bias,
            float* __restrict__ y, float* __restrict__ sums, int n, int c, int h, int width, int flip, int splits) {
  float* planes = (float*)smem;
  float* taps = planes + CB * PLANE;
  const Map map = {n, c, h, width};
  const Jobs jobs = jobs_of(map);
  const int tiles = jobs.tiles, per_image = jobs.per_image, channel0 = blockIdx.x % jobs.groups * CB;
  Input input;
  copy_taps(taps, w, channel0, c, flip != 0);
  for (int job = blockIdx.x / jobs.groups; job < jobs.count; job += splits) {
    const int tile = job % tiles, col0 = tile * 8 * NT, strip = job / tiles * S;
    input.load(planes, x, strip, per_image, map, channel0, -REACH_ROWS, col0 - 8 * SIDE);
    planes_loaded();
    for (int channel = threadIdx.x / 32; channel < CB && channel0 + channel < c; channel += WARPS) {
      float* plane = planes + channel * PLANE;
      convolve_plane(plane, taps + channel * KH * TAPS, bias ? bias[channel0 + channel] : 0.f);
      if (sums) sum_plane<STRIDE, 0, PITCH>(sums, plane, strip, per_image, map, channel0 + channel, col0, tile);
    }
    __syncthreads();
    store_planes<STRIDE, 0, PITCH, PLANE>(y, planes, strip, per_image, map, channel0, col0);
    __syncthreads();
  }
}
#endif

#ifdef WEIGHT_GRADIENT
// A warp takes KC kernel rows of one channel; each lane sums over its own cells, and the
// lanes are added once at the end.
constexpr int ROWS = TH + (KC * KSPLIT - 1) * DIL;
constexpr int STRIDE = ROWS;
constexpr int PLANE = (S * STRIDE + SLACK) * PITCH;
constexpr int PITCH_G = 8 * NT + 4;
constexpr int PLANE_G = S * TH * PITCH_G;
using Input = Loader<ROWS, STRIDE, 0, COLS_IN, PITCH, PLANE, PAD_ROWS_MODE, PAD_COLS_MODE>;
using Gradient = Loader<TH, TH, 0, 8 * NT, PITCH_G, PLANE_G, ZERO, ZERO>;

// d[i - q] += input row i times gradient row q, for the taps from FIRST on
template <int FIRST>
__device__ __forceinline__ void correlate(float (&d)[KC][KW], const float (&g)[MT][8], const float* row, int i) {
  if constexpr (FIRST < KW) {
    constexpr int COUNT = KW - FIRST < TAPS_AT_ONCE ? KW - FIRST : TAPS_AT_ONCE;
    using Seen = Reach<FIRST, COUNT>;
    float window[WINDOW];
    Seen::load(window, row);
#pragma unroll
    for (int q = 0; q < MT; q++) {
      if (i - q < 0 || i - q >= KC) continue;
#pragma unroll
      for (int k = 0; k < COUNT; k++)
#pragma unroll
        for (int e = 0; e < 8; e++)
          d[i - q < 0 || i - q >= KC ? 0 : i - q][FIRST + k] += window[Seen::SKIP + k * DIL + e] * g[q][e];
    }
    correlate<FIRST + TAPS_AT_ONCE>(d, g, row, i);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    weight_gradient(const float* __restrict__ x, const float* __restrict__ gy, float* __restrict__ partial, int n,
                    int c, int h, int width, int splits) {
  float* planes = (float*)smem;
  float* planes_g = planes + CB * PLANE;
  const Map map = {n, c, h, width};
  const Jobs jobs = jobs_of(map);
  const Share mine = share_of(map, jobs);
  const int tiles = jobs.tiles, per_image = jobs.per_image, channel0 = mine.channel0, warp = threadIdx.x / 32,
            lane = threadIdx.x % 32;
  float d[KC][KW];
#pragma unroll
  for (int k = 0; k < KC; k++)
#pragma unroll
    for (int kw = 0; kw < KW; kw++) d[k][kw] = 0.f;
  // rows that nobody loads are multiplied with zero, and must not be NaN
  clear<CB * PLANE * 4>(planes);
  Input input;
  Gradient gradient;
  for (int job = mine.split; job < jobs.count; job += splits) {
    const int col0 = job % tiles * 8 * NT, strip = job / tiles * S;
    __syncthreads();
    input.load(planes, x, strip, per_image, map, channel0, mine.chunk * KC * KSPLIT * DIL - REACH_ROWS,
               col0 - 8 * SIDE);
    gradient.load(planes_g, gy, strip, per_image, map, channel0, 0, col0);
    planes_loaded();
    if (mine.rows <= 0) continue;                          // the same for all lanes; those barriers above are still met
    const float* plane = planes + mine.channel * PLANE + warp % KSPLIT * KC * DIL * PITCH;
    const float* plane_g = planes_g + mine.channel * PLANE_G;
    const int j = lane / GROUPS;
#pragma unroll 1
    for (int g0 = 0; g0 < S * PER_STRIP; g0 += GROUPS) {
      const int group = g0 + lane % GROUPS;
      if (j >= NT || group >= S * PER_STRIP) continue;
      const int strip_of_group = group / PER_STRIP, row = first_row(group);
      float g[MT][8];
#pragma unroll
      for (int q = 0; q < MT; q++) {
        if (row + q * DIL < TH) load_fours<2>(g[q], plane_g + (strip_of_group * TH + row + q * DIL) * PITCH_G + 8 * j);
        else
#pragma unroll
          for (int e = 0; e < 8; e++) g[q][e] = 0.f;
      }
      const float* seen = plane + (strip_of_group * STRIDE + row) * PITCH + 8 * j + 8 * SIDE;
#pragma unroll
      for (int i = 0; i < KC + MT - 1; i++) correlate<0>(d, g, seen + i * DIL * PITCH, i);
    }
  }
  float* out = place_of(partial, mine, map);
#pragma unroll
  for (int k = 0; k < KC; k++)
#pragma unroll
    for (int kw = 0; kw < KW; kw++) {
      float sum = d[k][kw];
#pragma unroll
      for (int mask = 16; mask; mask /= 2) sum += shfl_xor(sum, mask);
      if (lane == 0 && k < mine.rows) out[k * KW + kw] = sum;
    }
}
#endif
