// Depthwise convolution of channels-last maps of nine to 32 columns in 16-bit types on tensor cores, forward (with flipped taps: gradient of
// the input), from Hopper on. strands.cuh says how.
//
// A unit of work is sixteen channels, a sector of memory, of IMAGES images. A block stays on its multiprocessor; its TEAMS teams of WARPS warps take
// its units in turns, so that one unit is loaded or stored while others are multiplied. What does not come out even is shared by two blocks, eight
// channels each. The copy engine brings them cell by cell and takes them so; a team spreads its unit to planes in the same place, half a unit beside its cells.
//
// Defined from outside: TEAMS, SHARED_BYTES, and what strands.cuh wants.

constexpr int CB = 16, TEAM = THREADS, PLACE = ((CB * PLANE + CB / 8 * 32) * 2 + 255) / 256 * 256;  // threads; bytes
static_assert(TW % 2 == 0 && TH % GROUPS == 0 && TH * TW % 4 == 0, "a word is two columns, strands are of one length, and copies begin at 128 bytes");
static_assert(TEAMS * (PLACE + CB * TAPS * 2 + 8) == SHARED_BYTES, "gpu_tiles.py counts otherwise");

__device__ __forceinline__ int plane_of(int channel) { return channel * PLANE + channel / 8 * 32; }

struct Job { int image0, channel0, first, count; bool half; };  // channels first to first + count of the sixteen

// The k-th of the block; false where there is none.
__device__ __forceinline__ bool job_of(Job& job, int k, int n, int c) {
  const int groups = (c + CB - 1) / CB, units = groups * ((n + IMAGES - 1) / IMAGES), blocks = gridDim.x, whole = units / blocks, rest = units % blocks;
  const bool halves = job.half = k == whole && 2 * rest <= blocks;
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

// Half a unit, eight channels: cells stand in the half of the place that the planes leave. Nobody waits between reading and writing.
__device__ __forceinline__ unsigned char* cells_of_half(unsigned char* place, int first) { return place + (first ? 0 : (2 * plane_of(8) + 127) / 128 * 128); }

__device__ __forceinline__ void spread_half(unsigned char* place, int first) {
  const uint4* cells = (const uint4*)cells_of_half(place, first);
#pragma unroll 4
  for (int at = threadIdx.x % TEAM; at < 8 * WORDS; at += TEAM) {
    const uint4 left = cells[2 * at], right = cells[2 * at + 1];
    const u32 a[4] = {left.x, left.y, left.z, left.w}, b[4] = {right.x, right.y, right.z, right.w};
    u32* to = (u32*)place + plane_of(first) / 2 + at + at / WORDS * GAP;
#pragma unroll
    for (int e = 0; e < 4; e++) {
      to[2 * e * (PLANE / 2)] = prmt(a[e], b[e], 0x5410);
      to[(2 * e + 1) * (PLANE / 2)] = prmt(a[e], b[e], 0x7632);
    }
  }
}

__device__ __forceinline__ void gather_half(unsigned char* place, int first) {
  uint4* cells = (uint4*)cells_of_half(place, first);
#pragma unroll 4
  for (int at = threadIdx.x % TEAM; at < 8 * WORDS; at += TEAM) {
    const u32* from = (const u32*)place + plane_of(first) / 2 + at + at / WORDS * GAP;
    u32 a[4], b[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const u32 even = from[2 * e * (PLANE / 2)], odd = from[(2 * e + 1) * (PLANE / 2)];
      a[e] = prmt(even, odd, 0x5410), b[e] = prmt(even, odd, 0x7632);
    }
    cells[2 * at] = make_uint4(a[0], a[1], a[2], a[3]), cells[2 * at + 1] = make_uint4(b[0], b[1], b[2], b[3]);
  }
}

extern "C" __global__ void __launch_bounds__(TEAMS * TEAM, 1)
    forward(const __grid_constant__ TensorMap x, const T* __restrict__ w, const T* __restrict__ bias, const __grid_constant__ TensorMap y,
            const __grid_constant__ TensorMap half_x, const __grid_constant__ TensorMap half_y, float* __restrict__ sums, int n, int c, int, int, int flip) {
  const int team = uniform(threadIdx.x / TEAM), thread = threadIdx.x % TEAM;
  unsigned char* place = smem + team * PLACE;
  T* taps = (T*)(smem + TEAMS * PLACE) + team * CB * TAPS;
  u64* full = (u64*)(smem + TEAMS * (PLACE + CB * TAPS * 2));
  const auto order = [&](const Job& job) {
    expect_bytes(full + team, IMAGES * TH * TW * (job.half ? CB / 2 : CB) * 2);
    if (job.half) tensor_copy<TH, TW, 1, IMAGES>(cells_of_half(place, job.first), half_x, job.channel0 + job.first, 0, 0, job.image0, full + team);
    else tensor_copy<TH, TW, 2, IMAGES>(place, x, job.channel0, 0, 0, job.image0, full + team);
  };
  Job job;
  bool there = job_of(job, team, n, c);
  if (threadIdx.x == 0) {
    fetch_map(x);
    for (int i = 0; i < TEAMS; i++) make_bytes_barrier(full + i);
  }
  __syncthreads();
  overlap_launches();
  if (thread == 0 && there) order(job);
#pragma unroll 1
  for (int k = team, round = 0; there; k += TEAMS, round++, there = job_of(job, k, n, c)) {
    if (round) {
      publish_shared();                                  // what threads wrote there stands before what the copy engine writes
      sync_some<TEAM>(team);
      if (thread == 0) order(job);
      sync_some<TEAM>(team);
    }
    for (int i = thread; i < job.count * TAPS / 8; i += TEAM) cp_async_16(taps + 8 * i, w + (i64)(job.channel0 + job.first) * TAPS + 8 * i, true);
    cp_async_commit();
    wait_bytes(full + team, round);
    if (job.half) spread_half(place, job.first);
    else spread(place, team);
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
      if (flip) convolve<true>(acc, plane, taps + (channel - job.first) * TAPS);
      else convolve<false>(acc, plane, taps + (channel - job.first) * TAPS);
      __syncwarp();
      put_outputs(plane, acc);
      if (sums) sum_plane(sums, plane, job.image0, job.channel0 + channel, n, c);
    }
    sync_some<TEAM>(team);
    if (job.half) gather_half(place, job.first);
    else gather(place, team);
    publish_shared();
    sync_some<TEAM>(team);
    if (thread == 0) {
      if (job.half) tensor_store<TH, TW, 1, IMAGES>(half_y, cells_of_half(place, job.first), job.channel0 + job.first, 0, 0, job.image0);
      else tensor_store<TH, TW, 2, IMAGES>(y, place, job.channel0, 0, 0, job.image0);
      commit_stores();
      wait_stores_read<0>();
    }
  }
}
