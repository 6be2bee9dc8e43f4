// Depthwise convolution of channels-last maps of nine to 32 columns in 16-bit types on tensor cores, forward (with flipped taps: gradient of
// the input). strands.cuh says how.
//
// Defined from outside: CB (channels of a block: 8 or 16), BATCH (pairs of cells that a thread has under way), MIN_BLOCKS, SHARED_BYTES, and what
// strands.cuh wants.

static_assert(TW % 2 == 0 && TH % GROUPS == 0 && CB % 8 == 0, "a word is two columns, strands are of one length, and eight channels are copied at a time");
static_assert((CB * PLANE + CB / 8 * 32 + CB * TAPS) * 2 + 8 * (BULK != 0) == SHARED_BYTES, "gpu_tiles.py counts otherwise");

__device__ __forceinline__ int plane_of(int channel) { return channel * PLANE + channel / 8 * 32; }

// What a thread moves at a time: eight channels of two neighbouring cells. Cells are counted over all images.
constexpr int OCTETS = CB / 8, ACROSS = 32 / OCTETS, TURN = WARPS * ACROSS, TURNS = (8 * WORDS + TURN - 1) / TURN;
struct Unit {
  int octet, pair;

  __device__ __forceinline__ Unit() : octet(threadIdx.x % OCTETS), pair(threadIdx.x / OCTETS) {}
  __device__ __forceinline__ int place(int i) const {    // of its first channel in shared memory, in words
    const int at = pair + i * TURN;
    return plane_of(8 * octet) / 2 + at + at / WORDS * GAP;
  }
};

__device__ __forceinline__ void load_planes(T* planes, const T* __restrict__ x, int image0, int channel0, int n, int c) {
  const Unit unit;
  const int count = channel0 + 8 * unit.octet < c ? min(IMAGES, n - image0) * GROUPS * WORDS : 0;
  const T* from = x + ((i64)image0 * (TH * TW) + 2 * unit.pair) * c + channel0 + 8 * unit.octet;
  constexpr int TOGETHER = TURNS < BATCH ? TURNS : BATCH;
#pragma unroll
  for (int first = 0; first < TURNS; first += TOGETHER) {
    uint4 held[TOGETHER][2];
#pragma unroll
    for (int i = 0; i < TOGETHER; i++, from += 2 * TURN * c) {
      const bool there = unit.pair + (first + i) * TURN < count;
      held[i][0] = there ? __ldg((const uint4*)from) : make_uint4(0, 0, 0, 0);
      held[i][1] = there ? __ldg((const uint4*)(from + c)) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
      if (unit.pair + (first + i) * TURN >= 8 * WORDS) break;
      u32* to = (u32*)planes + unit.place(first + i);
      const u32 a[4] = {held[i][0].x, held[i][0].y, held[i][0].z, held[i][0].w}, b[4] = {held[i][1].x, held[i][1].y, held[i][1].z, held[i][1].w};
#pragma unroll
      for (int e = 0; e < 4; e++) {                      // a word holds two channels of one column; a plane wants two columns of one channel
        to[2 * e * (PLANE / 2)] = prmt(a[e], b[e], 0x5410);
        to[(2 * e + 1) * (PLANE / 2)] = prmt(a[e], b[e], 0x7632);
      }
    }
  }
}

__device__ __forceinline__ void store_planes(T* __restrict__ y, const T* planes, int image0, int channel0, int n, int c) {
  const Unit unit;
  const int count = channel0 + 8 * unit.octet < c ? min(IMAGES, n - image0) * GROUPS * WORDS : 0;
  T* to = y + ((i64)image0 * (TH * TW) + 2 * unit.pair) * c + channel0 + 8 * unit.octet;
#pragma unroll 4
  for (int i = 0; i < TURNS; i++, to += 2 * TURN * c) {
    if (unit.pair + i * TURN >= count) break;
    const u32* from = (const u32*)planes + unit.place(i);
    u32 a[4], b[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const u32 even = from[2 * e * (PLANE / 2)], odd = from[(2 * e + 1) * (PLANE / 2)];
      a[e] = prmt(even, odd, 0x5410), b[e] = prmt(even, odd, 0x7632);
    }
    *(uint4*)to = make_uint4(a[0], a[1], a[2], a[3]);
    *(uint4*)(to + c) = make_uint4(b[0], b[1], b[2], b[3]);
  }
}

#if BULK
// A thread's eight channels of its cells as the copy engine leaves them and wants them: cell by cell, where of eight cells' octets those of the last four change
// places. Half of the threads take the second of their cells first, so that a warp meets all banks.
__device__ __forceinline__ int raw_place(const Unit& unit, int i, int k) {
  const int cell = 2 * (unit.pair + i * TURN) + (k ^ (unit.pair >> (OCTETS == 2 ? 1 : 2) & 1));
  return cell * OCTETS + (unit.octet ^ (OCTETS == 2 ? cell >> 2 & 1 : 0));
}
__device__ __forceinline__ void spread(T* planes) {
  const Unit unit;
  const bool turned = unit.pair >> (OCTETS == 2 ? 1 : 2) & 1;
  const u32 low = turned ? 0x1054 : 0x5410, high = turned ? 0x3276 : 0x7632;
  uint4 held[TURNS][2];
#pragma unroll
  for (int i = 0; i < TURNS; i++)
#pragma unroll
    for (int k = 0; k < 2; k++)
      if (unit.pair + i * TURN < 8 * WORDS) held[i][k] = ((const uint4*)planes)[raw_place(unit, i, k)];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < TURNS; i++) {
    if (unit.pair + i * TURN >= 8 * WORDS) break;
    u32* to = (u32*)planes + unit.place(i);
    const u32 a[4] = {held[i][0].x, held[i][0].y, held[i][0].z, held[i][0].w}, b[4] = {held[i][1].x, held[i][1].y, held[i][1].z, held[i][1].w};
#pragma unroll
    for (int e = 0; e < 4; e++) {
      to[2 * e * (PLANE / 2)] = prmt(a[e], b[e], low);
      to[(2 * e + 1) * (PLANE / 2)] = prmt(a[e], b[e], high);
    }
  }
}
__device__ __forceinline__ void gather(T* planes) {
  const Unit unit;
  const bool turned = unit.pair >> (OCTETS == 2 ? 1 : 2) & 1;
  const u32 first = turned ? 0x7632 : 0x5410, second = turned ? 0x5410 : 0x7632;
  u32 held[TURNS][2][4];
#pragma unroll
  for (int i = 0; i < TURNS; i++) {
    if (unit.pair + i * TURN >= 8 * WORDS) break;
    const u32* from = (const u32*)planes + unit.place(i);
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const u32 even = from[2 * e * (PLANE / 2)], odd = from[(2 * e + 1) * (PLANE / 2)];
      held[i][0][e] = prmt(even, odd, first), held[i][1][e] = prmt(even, odd, second);
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < TURNS; i++)
#pragma unroll
    for (int k = 0; k < 2; k++)
      if (unit.pair + i * TURN < 8 * WORDS) ((uint4*)planes)[raw_place(unit, i, k)] = make_uint4(held[i][k][0], held[i][k][1], held[i][k][2], held[i][k][3]);
}
#if BULK == 2
__device__ __forceinline__ void tensor_store(const TensorMap& map, const void* from, int channel, int col, int row, int image) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3, %4}], [%5];"
               ::"l"(&map), "r"(channel), "r"(col), "r"(row), "r"(image), "r"(shared_address(from)) : "memory");
}
#endif
#define X_ARGUMENT const __grid_constant__ TensorMap x
#else
#define X_ARGUMENT const T* __restrict__ x
#endif
#if BULK == 2
#define Y_ARGUMENT const __grid_constant__ TensorMap y
#else
#define Y_ARGUMENT T* __restrict__ y
#endif

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    forward(X_ARGUMENT, const T* __restrict__ w, const T* __restrict__ bias, Y_ARGUMENT, float* __restrict__ sums, int n, int c, int, int, int flip) {
  STAMP(0)
#if PDL
  overlap_launches();
#endif
  T* planes = (T*)smem;
  T* taps = planes + CB * PLANE + CB / 8 * 32;
  const int groups = (c + CB - 1) / CB, channel0 = blockIdx.x % groups * CB, image0 = blockIdx.x / groups * IMAGES, channels = min(CB, c - channel0);
  for (int i = threadIdx.x; i < channels * TAPS / 8; i += THREADS) cp_async_16(taps + 8 * i, w + (i64)channel0 * TAPS + 8 * i, true);
  cp_async_commit();
#if BULK
  u64* full = (u64*)(taps + CB * TAPS);
  if (threadIdx.x == 0) {
    make_bytes_barrier(full);
    if (!NO_LOAD) {
      expect_bytes(full, IMAGES * TH * TW * CB * 2);
#pragma unroll 1
      for (int i = 0; i < IMAGES; i++) tensor_copy<TH, TW, OCTETS>(planes + i * (TH * TW * CB), x, channel0, 0, 0, image0 + i, full);
    }
  }
  __syncthreads();
  if (!NO_LOAD) {
    wait_bytes(full, 0);
    STAMP(1)
    spread(planes);
  }
#else
  if (!NO_LOAD) load_planes(planes, x, image0, channel0, n, c);
  STAMP(1)
#endif
  cp_async_wait<0>();
  __syncthreads();
  STAMP(2)
#pragma unroll 1
  for (int channel = threadIdx.x / 32; channel < (NO_PRODUCTS ? 0 : channels); channel += WARPS) {
    T* plane = planes + plane_of(channel);
    const float start = bias ? to_float(bias[channel0 + channel]) : 0.f;
    float acc[PAIRS][BLOCKS][4];                         // of two rows: column g of strands 2t and 2t + 1
#pragma unroll
    for (int out = 0; out < PAIRS; out++)
#pragma unroll
      for (int j = 0; j < BLOCKS; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) acc[out][j][e] = start;
    if (flip) convolve<true>(acc, plane, taps + channel * TAPS);
    else convolve<false>(acc, plane, taps + channel * TAPS);
    __syncwarp();
    put_outputs(plane, acc);
    if (sums) sum_plane(sums, plane, image0, channel0 + channel, n, c);
  }
  STAMP(3)
  __syncthreads();
  STAMP(4)
#if BULK == 2
  if (!NO_STORE) {
    gather(planes);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
#pragma unroll 1
      for (int i = 0; i < IMAGES; i++) tensor_store(y, planes + i * (TH * TW * CB), channel0, 0, 0, image0 + i);
      asm volatile("cp.async.bulk.commit_group;\n cp.async.bulk.wait_group.read 0;" ::: "memory");
    }
  }
#else
  if (!NO_STORE) store_planes(y, planes, image0, channel0, n, c);
#endif
  STAMP(5)
}
