// Depthwise convolution of channels-last maps of nine to 32 columns in 16-bit types on tensor cores, forward (with flipped taps: gradient of
// the input), from Hopper on. strands.cuh says how.
//
// A unit of work is sixteen channels, a sector of memory, of IMAGES images. A block stays on its multiprocessor; its TEAMS teams of WARPS warps take
// its units in turns, so that one unit is loaded or stored while others are multiplied. What does not come out even is shared by two blocks, eight
// channels each. The copy engine brings the units in the order in which they are wanted, cell by cell, and a team spreads its unit to planes in the same place.
//
// Defined from outside: TEAMS, SHARED_BYTES, and what strands.cuh wants.

constexpr int CB = 16, TEAM = THREADS, PLACE = ((CB * PLANE + CB / 8 * 32) * 2 + 255) / 256 * 256;  // threads; bytes
static_assert(TW % 2 == 0 && TH % GROUPS == 0 && TH * TW % 4 == 0, "a word is two columns, strands are of one length, and copies begin at 128 bytes");
static_assert(TEAMS * (PLACE + CB * TAPS * 2 + 8) == SHARED_BYTES, "gpu_tiles.py counts otherwise");

__device__ __forceinline__ int plane_of(int channel) { return channel * PLANE + channel / 8 * 32; }

struct Job { int image0, channel0, first, count; };      // channels first to first + count of the sixteen

// The k-th of the block; false where there is none.
__device__ __forceinline__ bool job_of(Job& job, int k, int n, int c) {
  const int groups = (c + CB - 1) / CB, units = groups * ((n + IMAGES - 1) / IMAGES), blocks = gridDim.x, whole = units / blocks, rest = units % blocks;
  const bool halves = k == whole && 2 * rest <= blocks;
  const int index = halves ? blockIdx.x / 2 : blockIdx.x, unit = k * blocks + index;
  job.image0 = unit / groups * IMAGES, job.channel0 = unit % groups * CB, job.first = halves ? blockIdx.x % 2 * 8 : 0;
  job.count = min(halves ? 8 : CB, c - job.channel0 - job.first);
  return k < whole || (k == whole && index < rest);
}

// What a thread moves at a time: eight channels of two neighbouring cells. Cells are counted over all images.
constexpr int ACROSS = 16, TURN = WARPS * ACROSS, TURNS = (8 * WORDS + TURN - 1) / TURN;
struct Unit {
  int octet, pair;

  __device__ __forceinline__ Unit() : octet(threadIdx.x % 2), pair(threadIdx.x % TEAM / 2) {}
  __device__ __forceinline__ int place(int i) const {    // of its first channel in shared memory, in words
    const int at = pair + i * TURN;
    return plane_of(8 * octet) / 2 + at + at / WORDS * GAP;
  }
  // As the copy engine leaves them: cell by cell, where the two octets of four cells in eight change places. Half of the threads take the second of
  // their cells first, so that a warp meets all banks.
  __device__ __forceinline__ bool turned() const { return pair & 2; }
  __device__ __forceinline__ int vector(int i, int k) const {
    const int cell = 2 * (pair + i * TURN) + (k ^ (pair >> 1 & 1));
    return cell * 2 + (octet ^ (cell >> 2 & 1));
  }
};

__device__ __forceinline__ void spread(unsigned char* place, int team) {
  const Unit unit;
  const u32 low = unit.turned() ? 0x1054 : 0x5410, high = unit.turned() ? 0x3276 : 0x7632;
  uint4 held[TURNS][2];
#pragma unroll
  for (int i = 0; i < TURNS; i++)
#pragma unroll
    for (int k = 0; k < 2; k++)
      if (unit.pair + i * TURN < 8 * WORDS) held[i][k] = ((const uint4*)place)[unit.vector(i, k)];
  sync_some<TEAM>(team);
#pragma unroll
  for (int i = 0; i < TURNS; i++) {
    if (unit.pair + i * TURN >= 8 * WORDS) break;
    u32* to = (u32*)place + unit.place(i);
    const u32 a[4] = {held[i][0].x, held[i][0].y, held[i][0].z, held[i][0].w}, b[4] = {held[i][1].x, held[i][1].y, held[i][1].z, held[i][1].w};
#pragma unroll
    for (int e = 0; e < 4; e++) {                        // a word holds two channels of one column; a plane wants two columns of one channel
      to[2 * e * (PLANE / 2)] = prmt(a[e], b[e], low);
      to[(2 * e + 1) * (PLANE / 2)] = prmt(a[e], b[e], high);
    }
  }
}

// Back again, for the copy engine.
__device__ __forceinline__ void gather(unsigned char* place, int team) {
  const Unit unit;
  const u32 one = unit.turned() ? 0x7632 : 0x5410, other = unit.turned() ? 0x5410 : 0x7632;
  u32 held[TURNS][2][4];
#pragma unroll
  for (int i = 0; i < TURNS; i++) {
    if (unit.pair + i * TURN >= 8 * WORDS) break;
    const u32* from = (const u32*)place + unit.place(i);
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const u32 even = from[2 * e * (PLANE / 2)], odd = from[(2 * e + 1) * (PLANE / 2)];
      held[i][0][e] = prmt(even, odd, one), held[i][1][e] = prmt(even, odd, other);
    }
  }
  sync_some<TEAM>(team);
#pragma unroll
  for (int i = 0; i < TURNS; i++)
#pragma unroll
    for (int k = 0; k < 2; k++)
      if (unit.pair + i * TURN < 8 * WORDS) ((uint4*)place)[unit.vector(i, k)] = make_uint4(held[i][k][0], held[i][k][1], held[i][k][2], held[i][k][3]);
}

// The eight channels of half a unit.
__device__ __forceinline__ void store_half(T* __restrict__ y, const unsigned char* place, const Job& job, int n, int c) {
  const Unit unit;
  const int count = 8 * unit.octet == job.first ? min(IMAGES, n - job.image0) * GROUPS * WORDS : 0;
  T* to = y + ((i64)job.image0 * (TH * TW) + 2 * unit.pair) * c + job.channel0 + job.first;
#pragma unroll 2
  for (int i = 0; i < TURNS; i++, to += 2 * TURN * c) {
    if (unit.pair + i * TURN >= count) break;
    const u32* from = (const u32*)place + unit.place(i);
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

extern "C" __global__ void __launch_bounds__(TEAMS * TEAM, 1)
    forward(const __grid_constant__ TensorMap x, const T* __restrict__ w, const T* __restrict__ bias, const __grid_constant__ TensorMap y, T* __restrict__ to,
            float* __restrict__ sums, int n, int c, int, int, int flip) {
  const int team = uniform(threadIdx.x / TEAM), thread = threadIdx.x % TEAM;
  unsigned char* place = smem + team * PLACE;
  T* taps = (T*)(smem + TEAMS * PLACE) + team * CB * TAPS;
  u64* full = (u64*)(smem + TEAMS * (PLACE + CB * TAPS * 2));
  const auto order = [&](const Job& job, int of_team) {
    expect_bytes(full + of_team, IMAGES * TH * TW * CB * 2);
    tensor_copy<TH, TW, 2, IMAGES>(smem + of_team * PLACE, x, job.channel0, 0, 0, job.image0, full + of_team);
  };
  Job job;
  if (threadIdx.x == 0) {
    fetch_map(x);
    for (int i = 0; i < TEAMS; i++) make_bytes_barrier(full + i);
  }
  __syncthreads();
  overlap_launches();
  if (threadIdx.x == 0)
    for (int k = 0; k < TEAMS && job_of(job, k, n, c); k++) order(job, k);
#pragma unroll 1
  for (int k = team, round = 0; job_of(job, k, n, c); k += TEAMS, round++) {
    if (round) {
      publish_shared();                                  // what threads wrote there stands before what the copy engine writes
      sync_some<TEAM>(team);
      if (thread == 0) order(job, team);
      sync_some<TEAM>(team);
    }
    const int channels = min(CB, c - job.channel0);
    for (int i = thread; i < channels * TAPS / 8; i += TEAM) cp_async_16(taps + 8 * i, w + (i64)job.channel0 * TAPS + 8 * i, true);
    cp_async_commit();
    wait_bytes(full + team, round);
    spread(place, team);
    cp_async_wait<0>();
    sync_some<TEAM>(team);
#pragma unroll 1
    for (int channel = job.first + thread / 32; channel < job.first + job.count; channel += WARPS) {
      T* plane = (T*)place + plane_of(channel);
      const float start = bias ? to_float(bias[job.channel0 + channel]) : 0.f;
      float acc[PAIRS][BLOCKS][4];                       // of two rows: column g of strands 2t and 2t + 1
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
      if (sums) sum_plane(sums, plane, job.image0, job.channel0 + channel, n, c);
    }
    sync_some<TEAM>(team);
    if (job.count < CB) {
      for (int last = job.first + job.count; job.first < last; job.first += 8) store_half(to, place, job, n, c);
    } else {
      gather(place, team);
      publish_shared();
      sync_some<TEAM>(team);
      if (thread == 0) {
        tensor_store<TH, TW, 2, IMAGES>(y, place, job.channel0, 0, 0, job.image0);
        commit_stores();
        wait_stores_read<0>();
      }
    }
  }
}
