// Several depthwise convolutions of one map, each with its batch norm, summed: what they need beside one merged
// convolution. A block works on whole maps of CB channels, of up to TH rows, a warp a channel; the branches' outputs
// live in registers and shared memory and are computed anew where they are wanted.
//
// Defined at compile time, besides what fragments.cuh needs: TERMS, KERNELS and DILATIONS, lists, the
// kernel that covers the others first; ROLES and ROLE_STARTS, the terms whose sums a warp holds at a
// time; W, the type of the weights.

constexpr int KERNEL[] = KERNELS, DILATION[] = DILATIONS, ROLE_START[] = ROLE_STARTS;
constexpr int STRIDE = TH + REACH_ROWS, OFFSET = REACH_ROWS, PLANE = (OFFSET + S * STRIDE) * PITCH;
constexpr int LINES = S * TH, TILES = (LINES + 15) / 16;  // output rows of a block, and sixteens of them
constexpr int PLANE_G = 16 * TILES * PITCH;
using Input = Loader<TH, STRIDE, OFFSET, COLS_IN, PITCH, PLANE, ZERO, ZERO>;
using Gradient = Loader<TH, TH, 0, COLS_IN, PITCH, PLANE_G, ZERO, ZERO>;

struct Kernels { const W* w[6]; };

__host__ __device__ constexpr int rows_before(int term) {
  int rows = 0;
  for (int t = 0; t < term; t++) rows += KERNEL[t];
  return rows;
}
__host__ __device__ constexpr int taps_before(int term) {
  int taps = 0;
  for (int t = 0; t < term; t++) taps += KERNEL[t] * KERNEL[t];
  return taps;
}
constexpr int ALL_ROWS = rows_before(TERMS), ALL_TAPS = taps_before(TERMS), SUMS = ALL_TAPS + KH * KW;

// the last, of which no weights exist, is the window of the first
template <int TERM> struct Term {
  static constexpr int K = KERNEL[TERM % TERMS], D = DILATION[TERM % TERMS];
  static constexpr int TOP = REACH_ROWS - K / 2 * D;     // rows that the largest window begins earlier
};

template <int TERM> __device__ __forceinline__ void pad_terms(T* taps, const Kernels& kernels, int channel0) {
  if constexpr (TERM < TERMS) {
    constexpr int K = Term<TERM>::K, D = Term<TERM>::D, FIRST = 8 * LB + 8 - K / 2 * D;
    const W* w = kernels.w[TERM] + (i64)channel0 * (K * K);
    for (int i = threadIdx.x; i < CB * K * K; i += THREADS) {
      T* row = taps + (i / (K * K) * ALL_ROWS + rows_before(TERM) + i % (K * K) / K) * 2 * TAPS + FIRST + i % K * D;
      row[0] = row[TAPS - 1] = from_float<T>(to_float(w[i]));
    }
    pad_terms<TERM + 1>(taps, kernels, channel0);
  }
}

// Where the window of output row m begins.
__device__ __forceinline__ int line_of(int m) { return m / TH * STRIDE + m % TH; }

// A lane's rows of the fragments of `COUNT` tiles from row m0 on.
template <int COUNT> __device__ __forceinline__ void point(const T* (&rows)[COUNT], const T* plane, int m0, int top) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < COUNT; i++)
    rows[i] = plane + (line_of(min(m0 + 16 * i + fragment_row(lane), LINES - 1)) + top) * PITCH + fragment_col(lane);
}

template <int COUNT> __device__ __forceinline__ void clear_tiles(float (&acc)[COUNT][NT][4]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++)
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[i][j][e] = 0.f;
}

#ifdef STATISTICS
// Of each term: sums of its output and of the squares, and the weight gradient if its own output came back; of the
// window alone, the sums of what each tap sees. They are all that the gradients need of the outputs.
template <int TERM, int END> struct Gathered {
  Sums<Term<TERM>::K> taps;
  float sum, squares;
  Gathered<TERM + 1, END> rest;
};
template <int END> struct Gathered<END, END> {};

template <int TERM, int END> __device__ __forceinline__ void begin(Gathered<TERM, END>& found) {
  if constexpr (TERM < END) {
    clear_sums(found.taps);
    found.sum = found.squares = 0.f;
    begin(found.rest);
  }
}

template <int TERM>
__device__ __forceinline__ void fill(T* out, const T* plane, const T* taps, float& sum, float& squares,
                                     const Map& map) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll 1
  for (int m0 = 0; m0 < LINES; m0 += 16) {
    float acc[1][NT][4];
    clear_tiles(acc);
    const T* rows[1];
    point(rows, plane, m0, Term<TERM>::TOP);
    if constexpr (TERM < TERMS)
      convolve<1, Term<TERM>::K, Term<TERM>::D, false>(acc, rows,
                                                       lane_taps<false>(taps + rows_before(TERM) * 2 * TAPS));
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int m = m0 + 8 * half + g;
      if (m >= LINES) continue;
#pragma unroll
      for (int j = 0; j < NT; j++) {
        const int col = 8 * j + 2 * t;
        const float a = TERM < TERMS ? acc[0][j][2 * half] : 1.f, b = TERM < TERMS ? acc[0][j][2 * half + 1] : 1.f;
        const bool there = m % TH < map.h;
        const float low = there && col < map.w ? a : 0.f, high = there && col + 1 < map.w ? b : 0.f;
        sum += low + high;
        squares += low * low + high * high;
        *(u32*)(out + m * PITCH + col) = pack2<T>(low, high);
      }
    }
  }
}

template <int TERM, int END>
__device__ __forceinline__ void gather(Gathered<TERM, END>& found, T* out, const T* plane, const T* taps,
                                       const Map& map) {
  if constexpr (TERM < END) {
    constexpr int K = Term<TERM>::K;
    const int lane = threadIdx.x % 32;
    fill<TERM>(out, plane, taps, found.sum, found.squares, map);
    __syncwarp();
#pragma unroll 1
    for (int m0 = 0; m0 < LINES; m0 += 16) {
      Fragment g[NT];
      load_fragments<NT, true>(g, out + (m0 + fragment_row(lane)) * PITCH + fragment_col(lane));
      const T* rows[1];
      point(rows, plane, m0, Term<TERM>::TOP);
      correlate_rows<K, Term<TERM>::D>(found.taps, rows[0], g, K);
    }
    __syncwarp();
    gather(found.rest, out, plane, taps, map);
  }
}

template <int TERM, int END>
__device__ __forceinline__ void put(const Gathered<TERM, END>& found, float* sums, float* moments, int c,
                                    float* scratch) {
  if constexpr (TERM < END) {
    put_taps<Term<TERM>::K, Term<TERM>::K, Term<TERM>::D>(sums + taps_before(TERM), found.taps, scratch, Term<TERM>::K);
    float sum = found.sum, squares = found.squares;
#pragma unroll
    for (int mask = 16; mask; mask /= 2) sum += shfl_xor(sum, mask), squares += shfl_xor(squares, mask);
    if (TERM < TERMS && threadIdx.x % 32 == 0) moments[2 * TERM * c] = sum, moments[(2 * TERM + 1) * c] = squares;
    put(found.rest, sums, moments, c, scratch);
  }
}

template <int ROLE>
__device__ __forceinline__ void play(const T* __restrict__ x, float* sums, float* moments, T* planes, T* outs,
                                     const T* taps, float* scratch, const Map& map, int channel0, int first,
                                     int splits) {
  if constexpr (ROLE < ROLES) {
    Gathered<ROLE_START[ROLE], ROLE_START[ROLE + 1]> found;
    begin(found);
    const int channel = threadIdx.x / 32, jobs = (map.n + S - 1) / S;
    for (int job = first; job < jobs; job += splits) {
      Input input;
      __syncthreads();
      input.load(planes, x, job * S, 1, map, channel0, 0, 0);
      planes_loaded();
      gather(found, outs + channel * PLANE_G, planes + channel * PLANE, taps + channel * ALL_ROWS * 2 * TAPS, map);
    }
    put(found, sums, moments, map.c, scratch);
    play<ROLE + 1>(x, sums, moments, planes, outs, taps, scratch, map, channel0, first, splits);
  }
}

// sums: [splits, c, SUMS]; moments: [splits, TERMS, 2, c].
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    statistics(const T* __restrict__ x, const W* w0, const W* w1, const W* w2, const W* w3, const W* w4, const W* w5,
               float* __restrict__ sums, float* __restrict__ moments, int n, int c, int h, int width, int splits) {
  T *planes = (T*)smem, *outs = planes + CB * PLANE, *taps = outs + CB * PLANE_G;
  float* scratch = (float*)(taps + CB * ALL_ROWS * 2 * TAPS) + threadIdx.x / 32 * SCRATCH;
  const Map map = {n, c, h, width};
  const Kernels kernels = {{w0, w1, w2, w3, w4, w5}};
  const int groups = c / CB, channel0 = blockIdx.x % groups * CB, split = blockIdx.x / groups,
            channel = channel0 + threadIdx.x / 32;
  clear<CB * (PLANE + PLANE_G + ALL_ROWS * 2 * TAPS) * 2>(smem);
  __syncthreads();
  pad_terms<0>(taps, kernels, channel0);
  play<0>(x, sums + ((i64)split * c + channel) * SUMS, moments + (i64)split * TERMS * 2 * c + channel, planes, outs,
          taps, scratch, map, channel0, split, splits);
}
#endif

#ifdef INPUT_GRADIENT
// The gradient of a term's output is along * g + own * output + constant, which is formed here, rounded, and convolved
// with the kernel turned round; the terms add up in registers.
template <int TERM>
__device__ __forceinline__ void push(float (&acc)[TILES][NT][4], T* out, const T* plane, const T* plane_g,
                                     const T* taps, const float* along, const float* own, const float* constant,
                                     const Map& map) {
  if constexpr (TERM < TERMS) {
    constexpr int K = Term<TERM>::K, D = Term<TERM>::D;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const T* my_taps = taps + rows_before(TERM) * 2 * TAPS;
    const float of_g = __ldg(along + TERM * map.c), of_out = __ldg(own + TERM * map.c),
                rest = __ldg(constant + TERM * map.c);
    const T* rows[TILES];
    {
      float value[TILES][NT][4];
      clear_tiles(value);
      point(rows, plane, 0, Term<TERM>::TOP);
      convolve<TILES, K, D, false>(value, rows, lane_taps<false>(my_taps));
#pragma unroll
      for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int m = 16 * i + 8 * half + g;
          if (m >= LINES) continue;
#pragma unroll
          for (int j = 0; j < NT; j++) {
            const int col = 8 * j + 2 * t;
            const u32 pushed = *(const u32*)(plane_g + m * PITCH + col);
            const float low = of_g * lo_float<T>(pushed) + of_out * value[i][j][2 * half] + rest;
            const float high = of_g * hi_float<T>(pushed) + of_out * value[i][j][2 * half + 1] + rest;
            const bool there = m % TH < map.h;
            *(u32*)(out + (line_of(m) + OFFSET) * PITCH + col) =
                pack2<T>(there && col < map.w ? low : 0.f, there && col + 1 < map.w ? high : 0.f);
          }
        }
    }
    __syncwarp();
    point(rows, out, 0, Term<TERM>::TOP);
    convolve<TILES, K, D, true>(acc, rows, lane_taps<true>(my_taps));
    __syncwarp();
    push<TERM + 1>(acc, out, plane, plane_g, taps, along, own, constant, map);
  }
}

// along, own, constant: [TERMS, c].
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    input_gradient(const T* __restrict__ x, const T* __restrict__ gy, const W* w0, const W* w1, const W* w2,
                   const W* w3, const W* w4, const W* w5, const float* __restrict__ along,
                   const float* __restrict__ own, const float* __restrict__ constant, T* __restrict__ gx, int n, int c,
                   int h, int width, int splits) {
  T *planes = (T*)smem, *outs = planes + CB * PLANE, *planes_g = outs + CB * PLANE, *taps = planes_g + CB * PLANE_G;
  const Map map = {n, c, h, width};
  const Kernels kernels = {{w0, w1, w2, w3, w4, w5}};
  const int groups = c / CB, channel0 = blockIdx.x % groups * CB, jobs = (n + S - 1) / S, channel = threadIdx.x / 32;
  clear<CB * (2 * PLANE + PLANE_G + ALL_ROWS * 2 * TAPS) * 2>(smem);
  __syncthreads();
  pad_terms<0>(taps, kernels, channel0);
  for (int job = blockIdx.x / groups; job < jobs; job += splits) {
    Input input;
    Gradient gradient;
    input.load(planes, x, job * S, 1, map, channel0, 0, 0);
    gradient.load(planes_g, gy, job * S, 1, map, channel0, 0, 0);
    planes_loaded();
    T* plane_g = planes_g + channel * PLANE_G;
    float acc[TILES][NT][4];
    clear_tiles(acc);
    push<0>(acc, outs + channel * PLANE, planes + channel * PLANE, plane_g, taps + channel * ALL_ROWS * 2 * TAPS,
            along + channel0 + channel, own + channel0 + channel, constant + channel0 + channel, map);
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int m = 16 * i + 8 * half + g;
        if (m >= LINES) continue;
#pragma unroll
        for (int j = 0; j < NT; j++)
          *(u32*)(plane_g + m * PITCH + 8 * j + 2 * t) = pack2<T>(acc[i][j][2 * half], acc[i][j][2 * half + 1]);
      }
    __syncthreads();
    store_planes<TH, 0, PITCH, PLANE_G>(gx, planes_g, job * S, 1, map, channel0, 0);
    __syncthreads();
  }
}
#endif
