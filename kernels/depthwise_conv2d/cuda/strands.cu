// Depthwise convolution of channels-last maps of nine to 56 columns in 16-bit types on tensor cores, forward (with
// flipped taps: input gradient), Hopper and later. strands.cuh says how.
//
// A unit of work is sixteen channels, a sector of memory, of IMAGES images. A block stays on its multiprocessor; its
// TEAMS teams of WARPS warps take its units in turns, so that one unit is loaded or stored while others are multiplied.
// What does not come out even is shared by two blocks, eight channels each. The copy engine brings them cell by cell
// and takes them so; a team spreads its unit to planes in the same place, half a unit beside its cells.
//
// Defined at compile time: TEAMS, IN_ORDER (the first units are requested in the order of the teams, not by each
// team), and what strands.cuh needs.

// threads; elements; bytes
constexpr int CB = 16, TEAM = THREADS, APART_PLANES = PLANE + 8, PLACE = (CB * APART_PLANES * 2 + 255) / 256 * 256;
static_assert(PW % 8 == 0 && TH % GROUPS == 0, "rows are whole blocks, and strands are of one length");
static_assert((TEAMS * (PLACE + CB * TAPS * 2 + 8) + 15) / 16 * 16 + ZEROS == SHARED_BYTES,
              "gpu_tiles.py counts otherwise");

__device__ __forceinline__ constexpr int plane_of(int channel) { return channel * APART_PLANES; }

struct Job { int image0, channel0, first, count; bool half; };  // channels first to first + count of the sixteen

// The k-th of the block; false where there is none.
__device__ __forceinline__ bool job_of(Job& job, int k, int n, int c) {
  const int groups = (c + CB - 1) / CB, units = groups * ((n + IMAGES - 1) / IMAGES), blocks = gridDim.x,
            whole = units / blocks, rest = units % blocks;
  const bool halves = job.half = k == whole && 2 * rest <= blocks;
  const int index = halves ? blockIdx.x / 2 : blockIdx.x, unit = k * blocks + index;
  job.image0 = unit / groups * IMAGES, job.channel0 = unit % groups * CB, job.first = halves ? blockIdx.x % 2 * 8 : 0;
  job.count = min(halves ? 8 : CB, c - job.channel0 - job.first);
  return k < whole || (k == whole && index < rest);
}

// A warp's share of SHARE strands, between cells as the copy engine has them, 8 OCTETS channels each, and words of
// two cells in planes: matrices of eight cells and eight channels, which ldmatrix and stmatrix turn, in fours. Of
// sixteen channels, the two octets of four cells in eight have changed places. Planes lie four banks apart, so that
// the words of a matrix use all banks.
constexpr int SHARE = 8 / WARPS;
static_assert(8 % (2 * WARPS) == 0 && WORDS % 4 == 0, "warps have an even number of matrices");
template <int OCTETS> struct Matrices {
  static constexpr int FOURS = SHARE * WORDS / 4 * OCTETS / 4, REST = SHARE * WORDS / 4 * OCTETS % 4;  // none or two
  unsigned char* row;                                    // of the cell whose address this lane gives for the first four
  u32* word;                                             // that this lane holds of the first one

  __device__ __forceinline__ Matrices(unsigned char* place, unsigned char* cells, int first) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x % TEAM / 32,
              cell = warp * SHARE * WORDS * 2 + lane / 8 / OCTETS * 8 + lane % 8, octet = lane / 8 % OCTETS;
    row = cells + 16 * (cell * OCTETS + (OCTETS == 2 ? octet ^ (cell >> 2 & 1) : 0));
    word = (u32*)place + plane_of(first + lane / 4) / 2 + warp * SHARE * (WORDS + GAP) + lane % 4;
  }
  __device__ __forceinline__ u32& in_plane(int matrix) const {
    const int at = matrix / OCTETS * 4;
    return word[matrix % OCTETS * (plane_of(8) / 2) + at + at / WORDS * GAP];
  }
};

template <int OCTETS>
__device__ __forceinline__ void spread(unsigned char* place, unsigned char* cells, int first, int team) {
  const Matrices<OCTETS> all(place, cells, first);
  u32 held[all.FOURS + 1][4];
#pragma unroll
  for (int i = 0; i < all.FOURS; i++) ldmatrix_x4_trans(held[i], all.row + 512 * i);
  if (all.REST) ldmatrix_x2_trans((u32(&)[2])held[all.FOURS], all.row + 512 * all.FOURS);
  if (OCTETS == 2) sync_some<TEAM>(team);                // planes take the place of the cells
#pragma unroll
  for (int i = 0; i < 4 * all.FOURS + all.REST; i++) all.in_plane(i) = held[i / 4][i % 4];
}

// Back again, for the copy engine.
template <int OCTETS>
__device__ __forceinline__ void gather(unsigned char* place, unsigned char* cells, int first, int team) {
  const Matrices<OCTETS> all(place, cells, first);
  u32 held[all.FOURS + 1][4];
#pragma unroll
  for (int i = 0; i < 4 * all.FOURS + all.REST; i++) held[i / 4][i % 4] = all.in_plane(i);
  if (OCTETS == 2) sync_some<TEAM>(team);
#pragma unroll
  for (int i = 0; i < all.FOURS; i++) stmatrix_x4_trans(all.row + 512 * i, held[i]);
  if (all.REST) stmatrix_x2_trans(all.row + 512 * all.FOURS, held[all.FOURS][0], held[all.FOURS][1]);
}

// Half a unit, eight channels, has its cells in the half of the place that its planes leave.
__device__ __forceinline__ unsigned char* cells_of_half(unsigned char* place, int first) {
  return place + (first ? 0 : 2 * plane_of(8));
}

extern "C" __global__ void __launch_bounds__(TEAMS* TEAM, 1)
    forward(const __grid_constant__ TensorMap x, const T* __restrict__ w, const T* __restrict__ bias,
            const __grid_constant__ TensorMap y, const __grid_constant__ TensorMap half_x,
            const __grid_constant__ TensorMap half_y, float* __restrict__ sums, int n, int c, int, int, int flip) {
  const int team = uniform(threadIdx.x / TEAM), thread = threadIdx.x % TEAM;
  unsigned char* place = smem + team * PLACE;
  T* taps = (T*)(smem + TEAMS * PLACE) + team * CB * TAPS;
  u64* full = (u64*)(smem + TEAMS * (PLACE + CB * TAPS * 2));
  const auto order = [&](const Job& job, int of_team) {
    unsigned char* to = smem + of_team * PLACE;
    expect_bytes(full + of_team, IMAGES * TH * PW * (job.half ? CB / 2 : CB) * 2);
    if (job.half)
      tensor_copy<TH, PW, 1, IMAGES>(cells_of_half(to, job.first), half_x, job.channel0 + job.first, 0, 0, job.image0,
                                     full + of_team);
    else tensor_copy<TH, PW, 2, IMAGES>(to, x, job.channel0, 0, 0, job.image0, full + of_team);
  };
  Job job;
  bool there = job_of(job, team, n, c);
  if (threadIdx.x == 0) {
    fetch_map(x);
    for (int i = 0; i < TEAMS; i++) make_bytes_barrier(full + i);
  }
  make_zeros();
  __syncthreads();
  overlap_launches();
  if (IN_ORDER) {
    Job first;
    if (threadIdx.x < TEAMS && job_of(first, threadIdx.x, n, c)) order(first, threadIdx.x);
  } else if (thread == 0 && there) {
    order(job, team);
  }
#pragma unroll 1
  for (int k = team, round = 0; there; k += TEAMS, round++, there = job_of(job, k, n, c)) {
    if (round) {
      // what threads wrote there stands before what the copy engine writes
      publish_shared();
      sync_some<TEAM>(team);
      if (thread == 0) order(job, team);
      sync_some<TEAM>(team);
    }
    for (int i = thread; i < job.count * TAPS / 8; i += TEAM)
      cp_async_16(taps + 8 * i, w + (i64)(job.channel0 + job.first) * TAPS + 8 * i, true);
    cp_async_commit();
    wait_bytes(full + team, round);
    if (job.half) spread<1>(place, cells_of_half(place, job.first), job.first, team);
    else spread<2>(place, place, 0, team);
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
    if (job.half) gather<1>(place, cells_of_half(place, job.first), job.first, team);
    else gather<2>(place, place, 0, team);
    publish_shared();
    sync_some<TEAM>(team);
    if (thread == 0) {
      if (job.half)
        tensor_store<TH, PW, 1, IMAGES>(half_y, cells_of_half(place, job.first), job.channel0 + job.first, 0, 0,
                                        job.image0);
      else tensor_store<TH, PW, 2, IMAGES>(y, place, job.channel0, 0, 0, job.image0);
      commit_stores();
      wait_stores_read<0>();
    }
  }
}
