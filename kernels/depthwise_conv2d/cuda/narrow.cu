// Depthwise 3x3 convolution on channels-last maps, where arithmetic is cheap and only the bytes count.
//
// A block takes all channels of `pairs` times CW columns, which lie in one piece in each row, and walks down the rows of one image after
// the other. Rows are copied to a ring in shared memory, DEPTH stages of STAGE rows ahead: no register waits for memory, and from Hopper on
// no thread but one has anything to do with it. A thread owns four channels of CW columns and reads each row once. Below each image there
// is a row of zeros, which serves the one above and the one below.

extern __shared__ unsigned char smem[];

#if __CUDA_ARCH__ >= 900
#define BULK 1                                           // one thread orders whole pieces; else each copies its share
#elif !defined(BULK)
#define BULK 0
#endif

constexpr int CH = 4;                                    // channels of a thread
constexpr int STAGE = 3;                                 // rows that are waited for together: as many as take turns in registers

struct Vector { float v[CH]; };

__device__ __forceinline__ Vector widened(uint2 raw) {
  return {{lo_float<T>(raw.x), hi_float<T>(raw.x), lo_float<T>(raw.y), hi_float<T>(raw.y)}};
}

// Of a thread; beyond the last column (or pair) it is not `there`.
struct Place { int quads, quad, pair, channel, col; bool there; };

__device__ __forceinline__ Place place_of(int pairs, int pair_group, int channels, int width) {
  Place p;
  p.quads = channels / CH, p.quad = threadIdx.x % p.quads, p.pair = threadIdx.x / p.quads;
  p.channel = p.quad * CH, p.col = (pair_group * pairs + p.pair) * CW;
  p.there = p.pair < pairs && p.col < width;
  return p;
}

// Where part `part` of `parts` begins, of `all` in parts that differ by one at most.
__device__ __forceinline__ int begin_of(int part, int parts, int all) { return all / parts * part + min(part, all % parts); }

// A block's piece of the rows of one map, `halo` columns more at each side than its own.
struct Piece {
  int first, offset, elements, pitch;                    // its first element in a row, where it begins in its place in the ring

  __device__ __forceinline__ Piece(int halo, int pairs, int pair_group, int c, int width) : pitch((CW * pairs + 2 * halo) * c) {
    const int begin = pair_group * pairs * CW - halo, low = max(begin, 0), high = min(begin + CW * pairs + 2 * halo, width);
    first = low * c, offset = (low - begin) * c, elements = (high - low) * c;
  }

  // Zeros for what lies beyond the map, which no copy touches.
  __device__ __forceinline__ void clear_sides(T* to) const {
    for (int u = 8 * threadIdx.x; u < pitch; u += 8 * blockDim.x)
      if (u < offset || u >= offset + elements) *(uint4*)(to + u) = make_uint4(0, 0, 0, 0);
  }

  // Returns the bytes that it orders.
  __device__ __forceinline__ u32 copy(T* to, const T* row, u64* barrier) const {
#if BULK
    bulk_copy(to + offset, row + first, 2 * elements, barrier);
#else
    for (int u = 8 * threadIdx.x; u < elements; u += 8 * blockDim.x) cp_async_16(to + offset + u, row + first + u, true);
#endif
    return 2 * elements;
  }
};

// The rows from `first` on, h + 1 an image, on their way in stages. `copy` orders one, (its place in the ring, image, row, barrier), and
// returns its bytes. All threads call all of these.
template <class Copy> struct Ring {
  u64* barriers;                                         // [DEPTH]
  int first, count, height, stages;
  const Copy& copy;

  __device__ __forceinline__ Ring(u64* barriers, int first, int count, int height, const Copy& copy)
      : barriers(barriers), first(first), count(count), height(height), stages((count + STAGE - 1) / STAGE), copy(copy) {
#if BULK
    if (threadIdx.x == 0)
      for (int s = 0; s < DEPTH; s++) barrier_init(barriers + s);
#endif
    __syncthreads();
#pragma unroll 1
    for (int s = 0; s < DEPTH; s++) order(s);
  }

  __device__ __forceinline__ void order(int s) {
    if (s < stages && (!BULK || threadIdx.x == 0)) {
      u64* barrier = barriers + s % DEPTH;
      int image = (first + s * STAGE) / (height + 1), row = (first + s * STAGE) % (height + 1);
      u32 bytes = 0;
#pragma unroll 1
      for (int i = 0; i < min(STAGE, count - s * STAGE); i++) {
        bytes += copy(s % DEPTH * STAGE + i, image, row, barrier);
        if (row++ == height) row = 0, image++;
      }
#if BULK
      barrier_expect(barrier, bytes);
#endif
    }
#if !BULK
    cp_async_commit();
#endif
  }

  __device__ __forceinline__ void wait_for(int s) {
#if BULK
    barrier_wait(barriers + s % DEPTH, s / DEPTH);
#else
    cp_async_wait<DEPTH - 1>();
    __syncthreads();
#endif
  }

  __device__ __forceinline__ void done_with(int s) {
    __syncthreads();
    order(s + DEPTH);
  }
};

#ifdef FORWARD
extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
    forward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y, float* __restrict__ sums, int n, int c, int h, int width,
            int flip, int pairs, int splits) {
  const int pair_groups = (width + CW * pairs - 1) / (CW * pairs), strips = (h + TH - 1) / TH;
  const int pair_group = blockIdx.x % pair_groups, split = blockIdx.x / pair_groups;
  const Place at = place_of(pairs, pair_group, c, width);
  // From strip to strip, of all images; with the rows of zeros, h + 1 an image. The row before the first and that after the last are read too.
  const int unit = begin_of(split, splits, n * strips), unit_end = begin_of(split + 1, splits, n * strips);
  const int begin = unit / strips * (h + 1) + unit % strips * TH, end = unit_end % strips ? unit_end / strips * (h + 1) + unit_end % strips * TH : unit_end / strips * (h + 1) - 1;
  const int first = max(begin - 1, 0), count = end - first + 1;
  T* ring = (T*)smem;                                    // [DEPTH][STAGE][columns][c]
  const Piece rows(1, pairs, pair_group, c, width);
  float* scratch = (float*)(ring + DEPTH * STAGE * rows.pitch);  // [pairs][c]
  u64* barriers = (u64*)(scratch + pairs * c);
  for (int i = 0; i < DEPTH * STAGE; i++) rows.clear_sides(ring + i * rows.pitch);
  overlap_launches();
  const auto copy = [&](int at, int image, int row, u64* barrier) -> u32 {
    return row < h ? rows.copy(ring + at * rows.pitch, x + ((i64)image * h + row) * width * c, barrier) : 0;
  };
  Ring<decltype(copy)> stages(barriers, first, count, h, copy);

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
  int row = first % (h + 1), image = first / (h + 1);
  T* to = y + (((i64)image * h + row - 1) * width + at.col) * c + at.channel;  // output of the row above
  const i64 line = (i64)width * c;
#pragma unroll 1
  for (int s = 0, r = 0; s < stages.stages; s++) {
    stages.wait_for(s);
#pragma unroll
    for (int i = 0; i < STAGE; i++, r++) {
      if (r >= count) break;
      if (at.there && row < h) {
        const uint2* from = (const uint2*)(ring + (s % DEPTH * STAGE + i) * rows.pitch) + at.pair * CW * at.quads + at.quad;
        Vector in[CW + 2];
#pragma unroll
        for (int j = 0; j < CW + 2; j++) in[j] = widened(from[j * at.quads]);
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
      const bool mine = r > begin - first && row > 0;
      if (mine && at.there) {
#pragma unroll
        for (int j = 0; j < CW; j++)
          if (at.col + j < width) {
            const uint2 packed = make_uint2(pack2<T>(done[j].v[0], done[j].v[1]), pack2<T>(done[j].v[2], done[j].v[3]));
            *(uint2*)(to + j * c) = packed;
            if (sums) {
              const Vector rounded = widened(packed);
#pragma unroll
              for (int k = 0; k < CH; k++) total.v[k] += rounded.v[k];
            }
          }
      }
#pragma unroll
      for (int j = 0; j < CW; j++) done[j] = start;
      if (sums && mine && (row % TH == 0 || row == h)) {  // a strip is complete
        __syncthreads();
        if (at.pair < pairs) *(float4*)(scratch + threadIdx.x * CH) = make_float4(total.v[0], total.v[1], total.v[2], total.v[3]);
        total = Vector{};
        __syncthreads();
        for (int channel = threadIdx.x; channel < c; channel += blockDim.x) {
          float sum = 0.f;
          for (int p = 0; p < pairs; p++) sum += scratch[p * c + channel];
          sums[(((i64)pair_group * strips + (row - 1) / TH) * n + image) * c + channel] = sum;
        }
      }
      if (row == h) row = 0, image++;
      else row++, to += line;
    }
    stages.done_with(s);
  }
}
#endif

#ifdef WEIGHT_GRADIENT
// A row of the input meets the gradient's rows above it, beside it and below it, three that take turns in registers. So it comes beside the one below.
extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
    weight_gradient(const T* __restrict__ x, const T* __restrict__ gy, float* __restrict__ partial, int n, int c, int h, int width, int splits, int pairs) {
  const int pair_groups = (width + CW * pairs - 1) / (CW * pairs), pair_group = blockIdx.x % pair_groups, part = blockIdx.x / pair_groups, parts = splits / pair_groups;
  const Place at = place_of(pairs, pair_group, c, width);
  const int begin = begin_of(part, parts, n * (h + 1)), first = max(begin - 2, 0), count = begin_of(part + 1, parts, n * (h + 1)) - first;
  const Piece rows_x(1, pairs, pair_group, c, width), rows_g(0, pairs, pair_group, c, width);
  const int pitch = rows_x.pitch + rows_g.pitch;
  T* ring = (T*)smem;                                    // [DEPTH][STAGE], rows of the input [columns + 2][c] and of the gradient [columns][c]
  u64* barriers = (u64*)(ring + DEPTH * STAGE * pitch);
  for (int i = 0; i < DEPTH * STAGE; i++) {
    rows_x.clear_sides(ring + i * pitch);
    rows_g.clear_sides(ring + i * pitch + rows_x.pitch);
  }
  overlap_launches();
  const auto copy = [&](int at, int image, int row, u64* barrier) -> u32 {
    const i64 from = ((i64)image * h + row) * width * c;
    u32 bytes = 0;
    if (row > 0) bytes += rows_x.copy(ring + at * pitch, x + from - (i64)width * c, barrier);
    if (row < h) bytes += rows_g.copy(ring + at * pitch + rows_x.pitch, gy + from, barrier);
    return bytes;
  };
  Ring<decltype(copy)> stages(barriers, first, count, h, copy);
  float d[9][CH];
#pragma unroll
  for (int tap = 0; tap < 9; tap++)
#pragma unroll
    for (int k = 0; k < CH; k++) d[tap][k] = 0.f;
  Vector g[3][CW];
#pragma unroll
  for (int i = 0; i < 3; i++)
#pragma unroll
    for (int j = 0; j < CW; j++) g[i][j] = Vector{};
  int row = first % (h + 1);
#pragma unroll 1
  for (int s = 0, r = 0; s < stages.stages; s++) {
    stages.wait_for(s);
    if (at.there)
#pragma unroll
      for (int i = 0; i < STAGE; i++, r++) {
        if (r >= count) break;
        const uint2* from = (const uint2*)(ring + (s % DEPTH * STAGE + i) * pitch) + at.pair * CW * at.quads + at.quad;
        const uint2* from_g = (const uint2*)(ring + (s % DEPTH * STAGE + i) * pitch + rows_x.pitch) + at.pair * CW * at.quads + at.quad;
#pragma unroll
        for (int j = 0; j < CW; j++) g[i][j] = row < h ? widened(from_g[j * at.quads]) : Vector{};
        if (row > 0 && r >= begin - first) {
          Vector in[CW + 2];
#pragma unroll
          for (int j = 0; j < CW + 2; j++) in[j] = widened(from[j * at.quads]);
#pragma unroll
          for (int kh = 0; kh < 3; kh++)
#pragma unroll
            for (int kw = 0; kw < 3; kw++)
#pragma unroll
              for (int j = 0; j < CW; j++)
#pragma unroll
                for (int k = 0; k < CH; k++) d[3 * kh + kw][k] += in[j + kw].v[k] * g[(i + 3 - kh) % 3][j].v[k];
        }
        row = row == h ? 0 : row + 1;
      }
    stages.done_with(s);
  }
  const int pitch_s = pairs * c + CH;                    // the channels of a tap lie four banks after those of the one before
  float* scratch = (float*)smem;                         // [9][pairs][c]
  if (at.pair < pairs)
#pragma unroll
    for (int tap = 0; tap < 9; tap++) *(float4*)(scratch + tap * pitch_s + threadIdx.x * CH) = make_float4(d[tap][0], d[tap][1], d[tap][2], d[tap][3]);
  __syncthreads();
  float* out = partial + (i64)blockIdx.x * c * 9;
  for (int i = threadIdx.x; i < 9 * c; i += blockDim.x) {
    float sum = 0.f;
    for (int p = 0; p < pairs; p++) sum += scratch[i % 9 * pitch_s + p * c + i / 9];
    out[i] = sum;
  }
}
#endif
