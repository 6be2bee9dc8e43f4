// Depthwise 3x3 convolution on channels-last maps, forward (with flipped taps: input gradient), where arithmetic is
// cheap and only the bytes count.
//
// A thread owns four channels of two neighbouring columns and walks down the rows of a strip: it reads each input row
// once (four 8-byte vectors, three rows of sums in flight), so that nothing passes through shared memory. Threads that
// lie side by side own neighbouring channels. A block is `quads` x `pairs` threads of one image's strip.

extern __shared__ unsigned char smem[];

constexpr int CW = 2;                                    // columns of a thread

template <int COUNT> struct Raw { uint2 v[COUNT]; };     // on its way from memory

template <int COUNT>
__device__ __forceinline__ Raw<COUNT> fetch(const T* __restrict__ from, int c, const bool (&there)[COUNT],
                                            bool row_there) {
  Raw<COUNT> raw;
#pragma unroll
  for (int j = 0; j < COUNT; j++)
    raw.v[j] = there[j] && row_there ? __ldg((const uint2*)(from + j * c)) : make_uint2(0, 0);
  return raw;
}

struct Place { int quad, pair, channel, col; bool there; };

__device__ __forceinline__ Place place_of(int quads, int pairs, int quad_group, int pair_group, int channels,
                                          int width) {
  Place p;
  p.quad = threadIdx.x % quads, p.pair = threadIdx.x / quads;
  p.channel = (quad_group * quads + p.quad) * CH;
  p.col = (pair_group * pairs + p.pair) * CW;
  p.there = p.channel < channels && p.pair < pairs && p.col < width;
  return p;
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
    forward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
            float* __restrict__ sums, int n, int c, int h, int width, int flip, int quads, int pairs) {
  overlap_launches();
  const int quad_groups = (c / CH + quads - 1) / quads, pair_groups = (width + CW * pairs - 1) / (CW * pairs),
            strips = (h + TH - 1) / TH;
  int block = blockIdx.x;
  const int quad_group = block % quad_groups; block /= quad_groups;
  const int pair_group = block % pair_groups; block /= pair_groups;
  const int strip = block % strips, image = block / strips, row0 = strip * TH;
  const Place at = place_of(quads, pairs, quad_group, pair_group, c, width);
  Vector total = {};
  if (at.there) {
    float weight[9][CH];
    read_taps(weight, w, at.channel, flip);
    const Vector start = bias ? widened(__ldg((const uint2*)(bias + at.channel))) : Vector{};
    const T* from = x + (((i64)image * h + row0) * width + at.col) * c + at.channel;
    T* to = y + (((i64)image * h + row0) * width + at.col) * c + at.channel;
    const i64 line = (i64)width * c;
    const bool cols_there[CW + 2] = {at.col > 0, true, at.col + 1 < width, at.col + 2 < width};
    Vector acc[3][CW];
#pragma unroll
    for (int i = 0; i < 3; i++)
#pragma unroll
      for (int j = 0; j < CW; j++) acc[i][j] = start;
    // Unrolled whole, so that the compiler starts the loads of rows to come: a loop that
    // fetched one row ahead was slower.
#pragma unroll
    for (int r = -1; r <= TH; r++) {
      const bool inside = row0 + r >= 0 && row0 + r < h;
      const Raw<CW + 2> raw = fetch(from + r * line - c, c, cols_there, inside);
      Vector in[CW + 2];
#pragma unroll
      for (int j = 0; j < CW + 2; j++) in[j] = widened(raw.v[j]);
#pragma unroll
      for (int kh = 0; kh < 3; kh++) {                   // input row r meets output row r + 1 - kh
        if (r + 1 - kh < 0 || r + 1 - kh >= TH) continue;
        Vector* out = acc[(r + 1 - kh + 3) % 3];
#pragma unroll
        for (int j = 0; j < CW; j++)
#pragma unroll
          for (int kw = 0; kw < 3; kw++)
#pragma unroll
            for (int k = 0; k < CH; k++) out[j].v[k] += in[j + kw].v[k] * weight[3 * kh + kw][k];
      }
      if (r < 1) continue;
      Vector* done = acc[(r - 1) % 3];
#pragma unroll
      for (int j = 0; j < CW; j++) {
        if (row0 + r - 1 < h && at.col + j < width) {
          const uint2 packed = make_uint2(pack2<T>(done[j].v[0], done[j].v[1]), pack2<T>(done[j].v[2], done[j].v[3]));
          *(uint2*)(to + (r - 1) * line + j * c) = packed;
          const Vector rounded = widened(packed);
#pragma unroll
          for (int k = 0; k < CH; k++) total.v[k] += rounded.v[k];
        }
        done[j] = start;
      }
    }
  }
  if (!sums) return;
  float* scratch = (float*)smem;                         // [pairs][quads][CH]
#pragma unroll
  for (int k = 0; k < CH; k++)
    if (threadIdx.x < quads * pairs) scratch[(at.pair * quads + at.quad) * CH + k] = total.v[k];
  __syncthreads();
  for (int i = threadIdx.x; i < quads * CH; i += blockDim.x) {
    float sum = 0.f;
    for (int p = 0; p < pairs; p++) sum += scratch[p * quads * CH + i];
    const int channel = quad_group * quads * CH + i;
    if (channel < c) sums[(((i64)pair_group * strips + strip) * n + image) * c + channel] = sum;
  }
}
