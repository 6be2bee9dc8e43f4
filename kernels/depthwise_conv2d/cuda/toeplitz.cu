// Depthwise convolution in 16-bit types on tensor cores, forward (with flipped taps: input
// gradient) and weight gradient.
//
// One row of a KHxKW kernel, slid over eight neighbouring outputs, is a banded Toeplitz matrix: out[m, n] += x[m, k]
// w[k - n]. With eight columns to a block, an output block j needs the input blocks j - LB ... j + LB, each through its
// own 8x8 piece of that matrix. Matrix rows m are map rows, of one strip or of several; a kernel row only moves the
// pointer that fetches them. The pieces are never stored: a lane reads its two taps out of a zero-padded copy of the
// kernel row (a second copy, moved by one, serves odd distances). Two 8-wide pieces make one m16n8k16 product; the odd
// one of two kernel rows share one.

// WHOLE: strips are whole zero-padded maps. Then the zeros between two of them serve both
// and are written once, for good.
#ifdef FORWARD
constexpr int ROWS = WHOLE ? TH : TH + (KH - 1) * DIL;   // that are loaded
constexpr int STRIDE = WHOLE ? TH + REACH_ROWS : ROWS;   // from strip to strip
constexpr int OFFSET = WHOLE ? REACH_ROWS : 0;           // of the first strip
constexpr int PLANE = (OFFSET + S * STRIDE) * PITCH;
using Input = Loader<ROWS, STRIDE, OFFSET, COLS_IN, PITCH, PLANE, PAD_ROWS_MODE, PAD_COLS_MODE>;

// The row of the plane where the window of output row m begins.
__device__ __forceinline__ int line_of(int m) { return m / TH * STRIDE + m % TH; }

// One warp, one channel: all strips of its plane, 16 MT rows at a time. Outputs take the place of input rows that
// nobody needs any more: of whole maps, which are computed in one go, their own; else the first of their window.
__device__ __forceinline__ void convolve_plane(T* plane, const T* taps, float bias) {
  constexpr int LINES = S * TH;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const u32* my_taps = lane_taps<false>(taps);
#pragma unroll 1
  for (int m0 = 0; m0 < LINES; m0 += 16 * MT) {
    float acc[MT][NT][4];
    const T* rows[MT];
#pragma unroll
    for (int i = 0; i < MT; i++) {
      rows[i] = plane + line_of(min(m0 + 16 * i + fragment_row(lane), LINES - 1)) * PITCH + fragment_col(lane);
#pragma unroll
      for (int j = 0; j < NT; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) acc[i][j][e] = bias;
    }
    convolve<MT, KH, DIL, false>(acc, rows, my_taps);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int m = m0 + 16 * i + 8 * half + g;
        if (m >= LINES) continue;
        u32* to = (u32*)(plane + (line_of(m) + OFFSET) * PITCH + 2 * t);
#pragma unroll
        for (int j = 0; j < NT; j++) to[4 * j] = pack2<T>(acc[i][j][2 * half], acc[i][j][2 * half + 1]);
      }
    __syncwarp();
  }
}

// A block keeps its channels' taps and visits one group of strips after the other; while it
// computes one, the next is in flight.
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    forward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
            float* __restrict__ sums, int n, int c, int h, int width, int flip, int splits) {
  T* planes = (T*)smem;
  T* taps = planes + CB * PLANE;
  const Map map = {n, c, h, width};
  const Jobs jobs = jobs_of(map);
  const int tiles = jobs.tiles, per_image = jobs.per_image, channel0 = blockIdx.x % jobs.groups * CB;
  int job = blockIdx.x / jobs.groups;
  Input input;
  if (Input::AHEAD && job < jobs.count)
    input.fetch(x, job / tiles * S, per_image, map, channel0, WHOLE ? 0 : -REACH_ROWS, job % tiles * 8 * NT - 8 * SIDE);
  if (WHOLE) clear<CB * PLANE * 2>(planes);
  pad_taps(taps, w, channel0, c, flip != 0);
  if (WHOLE) __syncthreads();
  for (; job < jobs.count; job += splits) {
    const int tile = job % tiles, col0 = tile * 8 * NT;
    const int strip = job / tiles * S, next = job + splits;
    if (Input::AHEAD) input.commit(planes);
    else input.load(planes, x, strip, per_image, map, channel0, WHOLE ? 0 : -REACH_ROWS, col0 - 8 * SIDE);
    planes_loaded();
    if (Input::AHEAD && next < jobs.count)
      input.fetch(x, next / tiles * S, per_image, map, channel0, WHOLE ? 0 : -REACH_ROWS,
                  next % tiles * 8 * NT - 8 * SIDE);
    for (int channel = threadIdx.x / 32; channel < CB && channel0 + channel < c; channel += WARPS) {
      T* plane = planes + channel * PLANE;
      convolve_plane(plane, taps + channel * KH * 2 * TAPS, bias ? to_float(bias[channel0 + channel]) : 0.f);
      if (sums) sum_plane<STRIDE, OFFSET, PITCH>(sums, plane, strip, per_image, map, channel0 + channel, col0, tile);
    }
    __syncthreads();
    store_planes<STRIDE, OFFSET, PITCH, PLANE>(y, planes, strip, per_image, map, channel0, col0);
    __syncthreads();
  }
}
#endif

#ifdef WEIGHT_GRADIENT
// Accumulated in registers over all strips that a block visits; a warp takes KC kernel rows of one channel.
constexpr int ROWS = WHOLE ? TH : TH + (KC * KSPLIT - 1) * DIL;
constexpr int STRIDE = WHOLE ? TH + REACH_ROWS : ROWS;
constexpr int OFFSET = WHOLE ? REACH_ROWS : 0;
constexpr int PLANE = (OFFSET + S * STRIDE) * PITCH;
constexpr int LINES = (S * TH + 15) / 16 * 16;
constexpr int PITCH_G = PITCH_OF(NT);
constexpr int PLANE_G = LINES * PITCH_G;
using Input = Loader<ROWS, STRIDE, OFFSET, COLS_IN, PITCH, PLANE, PAD_ROWS_MODE, PAD_COLS_MODE>;
using Gradient = Loader<TH, TH, 0, 8 * NT, PITCH_G, PLANE_G, ZERO, ZERO>;

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    weight_gradient(const T* __restrict__ x, const T* __restrict__ gy, float* __restrict__ partial, int n, int c, int h,
                    int width, int splits) {
  T* planes = (T*)smem;
  T* planes_g = planes + CB * PLANE;
  const Map map = {n, c, h, width};
  const Jobs jobs = jobs_of(map);
  const Share mine = share_of(map, jobs);
  const int tiles = jobs.tiles, per_image = jobs.per_image, channel0 = mine.channel0, warp = threadIdx.x / 32,
            lane = threadIdx.x % 32;
  Sums<KC> d;
  clear_sums(d);
  clear<CB * PLANE_G * 2>(planes_g);
  if (WHOLE) clear<CB * PLANE * 2>(planes);
  const int row0 = WHOLE ? 0 : mine.chunk * KC * KSPLIT * DIL - REACH_ROWS;
  int job = mine.split;
  Input input;
  Gradient gradient;
  const auto fetch = [&](int at) {
    const int col0 = at % tiles * 8 * NT;
    if (Input::AHEAD && at < jobs.count)
      input.fetch(x, at / tiles * S, per_image, map, channel0, row0, col0 - 8 * SIDE);
    if (Gradient::AHEAD && at < jobs.count) gradient.fetch(gy, at / tiles * S, per_image, map, channel0, 0, col0);
  };
  fetch(job);
  for (; job < jobs.count; job += splits) {
    const int col0 = job % tiles * 8 * NT;
    __syncthreads();
    if (Input::AHEAD) input.commit(planes);
    else input.load(planes, x, job / tiles * S, per_image, map, channel0, row0, col0 - 8 * SIDE);
    if (Gradient::AHEAD) gradient.commit(planes_g);
    else gradient.load(planes_g, gy, job / tiles * S, per_image, map, channel0, 0, col0);
    planes_loaded();
    fetch(job + splits);
    const T* plane = planes + mine.channel * PLANE + warp % KSPLIT * KC * DIL * PITCH;
    const T* plane_g = planes_g + mine.channel * PLANE_G;
#pragma unroll 1
    for (int m0 = 0; m0 < LINES; m0 += 16) {
      const int m = m0 + fragment_row(lane), seen = min(m, S * TH - 1);
      Fragment g[NT];
      load_fragments<NT, true>(g, plane_g + m * PITCH_G + fragment_col(lane));
      correlate_rows<KC, DIL>(d, plane + (seen / TH * STRIDE + seen % TH) * PITCH + fragment_col(lane), g, mine.rows);
    }
  }
  __syncthreads();
  put_taps<KC, KW, DIL>(place_of(partial, mine, map), d, (float*)smem + warp * SCRATCH, mine.rows);
}
#endif
