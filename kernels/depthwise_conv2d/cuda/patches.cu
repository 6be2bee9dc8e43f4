// Weight gradient of a depthwise 3x3 convolution on channels-last maps, where arithmetic is
// cheap and only the bytes count.
//
// A thread owns two channels of a patch of PH x PW cells and requests at once all that it sees of both maps: it waits
// for memory once a patch, and what it waits for is much. Threads that lie side by side own neighbouring channels. A
// block is `pairs` of channels times `slots` patches, and goes from patches to patches; its sums stay in registers.
//
// Defined at compile time: T, CHANNELS, PH, PW, WHOLE (whether a patch is a map), MAX_THREADS, MIN_BLOCKS.

extern __shared__ unsigned char smem[];

struct Two { float v[2]; };
__device__ __forceinline__ Two widened(u32 raw) { return {{lo_float<T>(raw), hi_float<T>(raw)}}; }

struct Place {
  int image, row0, col0, h, width;

  __device__ __forceinline__ Place(int job, int h, int width) : h(h), width(width) {
    const int across = (width + PW - 1) / PW, down = (h + PH - 1) / PH;
    col0 = WHOLE ? 0 : job % across * PW, row0 = WHOLE ? 0 : job / across % down * PH,
    image = WHOLE ? job : job / across / down;
  }
  __device__ __forceinline__ bool has_row(int r) const { return WHOLE ? r >= 0 && r < PH : (u32)(row0 + r) < (u32)h; }
  __device__ __forceinline__ bool has_col(int j) const {
    return WHOLE ? j >= 0 && j < PW : (u32)(col0 + j) < (u32)width;
  }
  __device__ __forceinline__ i64 at(int channel) const {
    return (((i64)image * h + row0) * width + col0) * CHANNELS + channel;
  }
};

// The patch and HALO cells around it.
template <int HALO> struct Cells {
  u32 v[PH + 2 * HALO][PW + 2 * HALO];

  __device__ __forceinline__ Cells(const T* __restrict__ from, const Place& p) {
    const int line = p.width * CHANNELS;
#pragma unroll
    for (int r = -HALO; r < PH + HALO; r++) {
      const T* row = from + r * line;
#pragma unroll
      for (int j = -HALO; j < PW + HALO; j++)
        v[r + HALO][j + HALO] = p.has_row(r) && p.has_col(j) ? __ldg((const u32*)(row + j * CHANNELS)) : 0;
    }
  }
};

extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
    weight_gradient(const T* __restrict__ x, const T* __restrict__ gy, float* __restrict__ partial, int n, int, int h,
                    int width, int splits, int pairs, int slots) {
  overlap_launches();
  const int groups = (CHANNELS / 2 + pairs - 1) / pairs, group = blockIdx.x % groups, split = blockIdx.x / groups;
  const int patches = ((h + PH - 1) / PH) * ((width + PW - 1) / PW), slot = threadIdx.x / pairs;
  const int channel = (group * pairs + threadIdx.x % pairs) * 2;
  float d[9][2];
#pragma unroll
  for (int tap = 0; tap < 9; tap++) d[tap][0] = d[tap][1] = 0.f;
  if (slot < slots && channel < CHANNELS)
#pragma unroll 1
    for (int job = split * slots + slot; job < n * patches; job += splits * slots) {
      const Place p(job, h, width);
      const i64 at = p.at(channel);
      const Cells<1> in(x + at, p);
      const Cells<0> grad(gy + at, p);
      Two g[3][PW];                                      // of rows r - 2, r - 1, r, each in slot row % 3
#pragma unroll
      for (int r = 0; r < PH + 2; r++) {
        Two v[PW + 2];
#pragma unroll
        for (int j = 0; j < PW + 2; j++) v[j] = widened(in.v[r][j]);
        if (r < PH)
#pragma unroll
          for (int j = 0; j < PW; j++) g[r % 3][j] = widened(grad.v[r][j]);
#pragma unroll
        for (int kh = 0; kh < 3; kh++)
          if (r - kh >= 0 && r - kh < PH)
#pragma unroll
            for (int kw = 0; kw < 3; kw++)
#pragma unroll
              for (int j = 0; j < PW; j++)
#pragma unroll
                for (int k = 0; k < 2; k++) d[3 * kh + kw][k] += v[j + kw].v[k] * g[(r - kh) % 3][j].v[k];
      }
    }
  float* scratch = (float*)smem;                         // [slots][9][pairs][2]
  if (slot < slots)
#pragma unroll
    for (int tap = 0; tap < 9; tap++)
      *(float2*)(scratch + ((slot * 9 + tap) * pairs + threadIdx.x % pairs) * 2) = make_float2(d[tap][0], d[tap][1]);
  __syncthreads();
  for (int i = threadIdx.x; i < 18 * pairs; i += blockDim.x) {
    float sum = 0.f;
    for (int s = 0; s < slots; s++) sum += scratch[s * 18 * pairs + i];
    const int to = group * 2 * pairs + i % (2 * pairs);
    if (to < CHANNELS) partial[((i64)split * CHANNELS + to) * 9 + i / (2 * pairs)] = sum;
  }
}
