// Depthwise 3x3 convolution on channels-last maps, where arithmetic is cheap and only the bytes count.
//
// A block takes `quads` times four channels of `pairs` times CW columns, and walks down the rows of one image after the other. Rows
// come by asynchronous copies, DEPTH stages of some rows under way in shared memory, so that no register waits for memory. A thread owns
// four channels of CW columns and reads each row once. Below each image stands a row of zeros, which serves the one above and the one below.

extern __shared__ unsigned char smem[];

constexpr int CH = 4;                                    // channels of a thread

struct Vector { float v[CH]; };

__device__ __forceinline__ Vector widened(uint2 raw) {
  return {{lo_float<T>(raw.x), hi_float<T>(raw.x), lo_float<T>(raw.y), hi_float<T>(raw.y)}};
}

struct Place { int quad, pair, channel, col; bool there; };

__device__ __forceinline__ Place place_of(int quads, int pairs, int quad_group, int pair_group, int channels, int width) {
  Place p;
  p.quad = threadIdx.x % quads, p.pair = threadIdx.x / quads;
  p.channel = (quad_group * quads + p.quad) * CH;
  p.col = (pair_group * pairs + p.pair) * CW;
  p.there = p.channel < channels && p.pair < pairs && p.col < width;
  return p;
}

// Copies of one row after the other: `halo` columns more at each side than the block's own, the same few vectors of each row a thread.
template <int COUNT> struct Rows {
  const T* map;
  i64 line, next;                                        // elements of a row; where the next one begins
  int height, row, left;                                 // its number; `height` is the row of zeros; how many are wanted
  int from[COUNT];                                       // a thread's vectors in a row; NONE: zeros stand there, IDLE: it has fewer
  enum { NONE = -1, IDLE = -2 };

  __device__ __forceinline__ Rows(const T* __restrict__ map, i64 first, int count, int halo, int quads, int pairs, int quad_group, int pair_group, int c, int h, int width)
      : map(map), line((i64)width * c), height(h), row((int)(first % (h + 1))), left(count) {
    next = (first / (h + 1) * h + row) * line;
    const int parts = quads / 2, columns = CW * pairs + 2 * halo;
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
      const int u = threadIdx.x + k * blockDim.x, channel = quad_group * quads * CH + u % parts * 8, col = pair_group * pairs * CW + u / parts - halo;
      from[k] = u >= columns * parts ? IDLE : col >= 0 && col < width && channel < c ? col * c + channel : NONE;
    }
  }

  __device__ __forceinline__ void copy_next(T* to) {
    const bool zeros = row == height;
    if (left-- <= 0) return;
#pragma unroll
    for (int k = 0; k < COUNT; k++)
      if (from[k] != IDLE) {
        const bool there = !zeros && from[k] != NONE;
        cp_async_16(to + 8 * (threadIdx.x + k * blockDim.x), there ? map + next + from[k] : map, there);
      }
    if (!zeros) next += line;
    row = zeros ? 0 : row + 1;
  }
};

#ifdef FORWARD
constexpr int STAGE = 3;                                 // rows that are waited for together: as many as there are sums in flight

extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
    forward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y, float* __restrict__ sums, int n, int c, int h, int width,
            int flip, int quads, int pairs, int splits) {
  overlap_launches();
  const int quad_groups = (c / CH + quads - 1) / quads, pair_groups = (width + CW * pairs - 1) / (CW * pairs), strips = (h + TH - 1) / TH;
  const int quad_group = blockIdx.x % quad_groups, pair_group = blockIdx.x / quad_groups % pair_groups, split = blockIdx.x / quad_groups / pair_groups;
  const Place at = place_of(quads, pairs, quad_group, pair_group, c, width);
  // From strip to strip, of all images; with the rows of zeros, h + 1 an image. The row before the first and that after the last are read too.
  const i64 units = (i64)n * strips, unit = units * split / splits, unit_end = units * (split + 1) / splits;
  const i64 begin = unit / strips * (h + 1) + unit % strips * TH, end = unit_end % strips ? unit_end / strips * (h + 1) + unit_end % strips * TH : unit_end / strips * (h + 1) - 1;
  const i64 first = max(begin - 1, (i64)0);
  const int columns = CW * pairs + 2, pitch = columns * quads * CH;
  T* ring = (T*)smem;                                    // [DEPTH][STAGE][columns][quads][CH]
  float* scratch = (float*)(ring + DEPTH * STAGE * pitch);  // [pairs][quads][CH]
  Rows<CW / 2 + 1> rows(x, first, (int)(end - first) + 1, 1, quads, pairs, quad_group, pair_group, c, h, width);
  const int stages = (int)((end - first) / STAGE) + 1;   // up to row `end`
  for (int s = 0; s < DEPTH - 1; s++) {
    if (s < stages)
      for (int i = 0; i < STAGE; i++) rows.copy_next(ring + (s * STAGE + i) * pitch);
    cp_async_commit();
  }

  float weight[9][CH];
  Vector start = {};
  if (at.there) {
    u32 raw[18];
#pragma unroll
    for (int i = 0; i < 9; i++) {
      const uint2 two = __ldg((const uint2*)(w + (i64)at.channel * 9) + i);
      raw[2 * i] = two.x, raw[2 * i + 1] = two.y;
    }
#pragma unroll
    for (int tap = 0; tap < 9; tap++)
#pragma unroll
      for (int k = 0; k < CH; k++) {
        const int straight = 9 * k + tap, turned = 9 * k + 8 - tap;
        const u32 a = raw[straight / 2], b = raw[turned / 2];
        weight[tap][k] = flip ? (turned % 2 ? hi_float<T>(b) : lo_float<T>(b)) : (straight % 2 ? hi_float<T>(a) : lo_float<T>(a));
      }
    if (bias) start = widened(__ldg((const uint2*)(bias + at.channel)));
  }
  Vector acc[3][CW];                                     // of output rows r - 1, r, r + 1
#pragma unroll
  for (int i = 0; i < 3; i++)
#pragma unroll
    for (int j = 0; j < CW; j++) acc[i][j] = start;
  Vector total = {};
  int row = (int)(first % (h + 1)), image = (int)(first / (h + 1));
  T* to = y + (((i64)image * h + row - 1) * width + at.col) * c + at.channel;  // output of the row above
  const i64 line = (i64)width * c;
  i64 r = first;
  for (int s = 0; s < stages; s++) {
    cp_async_wait<DEPTH - 2>();
    __syncthreads();
    if (s + DEPTH - 1 < stages)
      for (int i = 0; i < STAGE; i++) rows.copy_next(ring + ((s + DEPTH - 1) % DEPTH * STAGE + i) * pitch);
    cp_async_commit();
#pragma unroll
    for (int i = 0; i < STAGE; i++, r++) {
      if (r > end) break;
      Vector in[CW + 2];
      if (at.there) {
        const uint2* from = (const uint2*)(ring + (s % DEPTH * STAGE + i) * pitch) + at.pair * CW * quads + at.quad;
#pragma unroll
        for (int j = 0; j < CW + 2; j++) in[j] = widened(from[j * quads]);
#pragma unroll
        for (int kh = 0; kh < 3; kh++)                   // meets output row r + 1 - kh
#pragma unroll
          for (int j = 0; j < CW; j++)
#pragma unroll
            for (int kw = 0; kw < 3; kw++)
#pragma unroll
              for (int k = 0; k < CH; k++) acc[(i + 4 - kh) % 3][j].v[k] += in[j + kw].v[k] * weight[3 * kh + kw][k];
      }
      Vector* done = acc[(i + 2) % 3];
      const bool mine = r > begin && row > 0;
      if (mine && at.there) {
#pragma unroll
        for (int j = 0; j < CW; j++)
          if (at.col + j < width) {
            const uint2 packed = make_uint2(pack2<T>(done[j].v[0], done[j].v[1]), pack2<T>(done[j].v[2], done[j].v[3]));
            *(uint2*)(to + j * c) = packed;
            const Vector rounded = widened(packed);
#pragma unroll
            for (int k = 0; k < CH; k++) total.v[k] += rounded.v[k];
          }
      }
#pragma unroll
      for (int j = 0; j < CW; j++) done[j] = start;
      if (sums && mine && (row % TH == 0 || row == h)) {  // a strip is complete
        __syncthreads();
        if (threadIdx.x < quads * pairs)
#pragma unroll
          for (int k = 0; k < CH; k++) scratch[threadIdx.x * CH + k] = total.v[k];
        total = Vector{};
        __syncthreads();
        for (int u = threadIdx.x; u < quads * CH; u += blockDim.x) {
          float sum = 0.f;
          for (int p = 0; p < pairs; p++) sum += scratch[p * quads * CH + u];
          const int channel = quad_group * quads * CH + u;
          if (channel < c) sums[(((i64)pair_group * strips + (row - 1) / TH) * n + image) * c + channel] = sum;
        }
      }
      if (row == h) row = 0, image++;
      else row++, to += line;
    }
  }
}
#endif

#ifdef WEIGHT_GRADIENT
constexpr int STAGE = 2;                                 // rows that are waited for together; even: a row and the one before change places

// A row of the input meets the gradient's row beside it, above it and below it: each row is kept while the next one is read.
extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
    weight_gradient(const T* __restrict__ x, const T* __restrict__ gy, float* __restrict__ partial, int n, int c, int h, int width, int splits, int quads, int pairs) {
  overlap_launches();
  const int quad_groups = (c / CH + quads - 1) / quads, pair_groups = (width + CW * pairs - 1) / (CW * pairs);
  const int quad_group = blockIdx.x % quad_groups, split = blockIdx.x / quad_groups, pair_group = split % pair_groups, part = split / pair_groups, parts = splits / pair_groups;
  const Place at = place_of(quads, pairs, quad_group, pair_group, c, width);
  const i64 all = (i64)n * (h + 1), begin = all * part / parts, end = all * (part + 1) / parts, first = max(begin - 1, (i64)0);
  const int pitch_x = (CW * pairs + 2) * quads * CH, pitch = pitch_x + CW * pairs * quads * CH;
  T* ring = (T*)smem;                                    // [DEPTH][STAGE], rows of the input [columns + 2][quads][CH] and of the gradient
  Rows<CW / 2 + 1> rows_x(x, first, (int)(end - first), 1, quads, pairs, quad_group, pair_group, c, h, width);
  Rows<CW / 2> rows_g(gy, first, (int)(end - first), 0, quads, pairs, quad_group, pair_group, c, h, width);
  const int stages = (int)((end - first + STAGE - 1) / STAGE);
  const auto copy_stage = [&](int s) {
    if (s < stages)
#pragma unroll
      for (int i = 0; i < STAGE; i++) {
        T* to = ring + (s % DEPTH * STAGE + i) * pitch;
        rows_x.copy_next(to);
        rows_g.copy_next(to + pitch_x);
      }
    cp_async_commit();
  };
  for (int s = 0; s < DEPTH - 1; s++) copy_stage(s);
  float d[9][CH];
#pragma unroll
  for (int tap = 0; tap < 9; tap++)
#pragma unroll
    for (int k = 0; k < CH; k++) d[tap][k] = 0.f;
  Vector in[2][CW + 2], g[2][CW];
#pragma unroll
  for (int j = 0; j < CW + 2; j++) in[1][j] = Vector{};
#pragma unroll
  for (int j = 0; j < CW; j++) g[1][j] = Vector{};
  i64 r = first;
#pragma unroll 1
  for (int s = 0; s < stages; s++) {
    cp_async_wait<DEPTH - 2>();
    __syncthreads();
    copy_stage(s + DEPTH - 1);
    if (!at.there) continue;
#pragma unroll
    for (int i = 0; i < STAGE; i++, r++) {
      if (r >= end) break;
      const int now = i % 2, above = 1 - now;
      const uint2* from = (const uint2*)(ring + (s % DEPTH * STAGE + i) * pitch) + at.pair * CW * quads + at.quad;
      const uint2* from_g = (const uint2*)(ring + (s % DEPTH * STAGE + i) * pitch + pitch_x) + at.pair * CW * quads + at.quad;
#pragma unroll
      for (int j = 0; j < CW + 2; j++) in[now][j] = widened(from[j * quads]);
#pragma unroll
      for (int j = 0; j < CW; j++) g[now][j] = widened(from_g[j * quads]);
      if (r < begin) continue;
#pragma unroll
      for (int j = 0; j < CW; j++)
#pragma unroll
        for (int kw = 0; kw < 3; kw++)
#pragma unroll
          for (int k = 0; k < CH; k++) {
            d[kw][k] += in[above][j + kw].v[k] * g[now][j].v[k];
            d[3 + kw][k] += in[now][j + kw].v[k] * g[now][j].v[k];
            d[6 + kw][k] += in[now][j + kw].v[k] * g[above][j].v[k];
          }
    }
  }
  cp_async_wait<0>();
  __syncthreads();
  const int pitch_s = pairs * quads * CH + CH;           // the channels of a tap lie four banks after those of the one before
  float* scratch = (float*)smem;                         // [9][pairs][quads][CH]
  if (at.pair < pairs)
#pragma unroll
    for (int tap = 0; tap < 9; tap++) *(float4*)(scratch + tap * pitch_s + threadIdx.x * CH) = make_float4(d[tap][0], d[tap][1], d[tap][2], d[tap][3]);
  __syncthreads();
  const int there = min(quads * CH, c - quad_group * quads * CH) * 9;
  float* out = partial + ((i64)split * c + quad_group * quads * CH) * 9;
  for (int i = threadIdx.x; i < there; i += blockDim.x) {
    float sum = 0.f;
    for (int p = 0; p < pairs; p++) sum += scratch[i % 9 * pitch_s + p * quads * CH + i / 9];
    out[i] = sum;
  }
}
#endif
