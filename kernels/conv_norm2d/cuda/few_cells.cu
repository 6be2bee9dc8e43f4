// A 3x3 convolution of stride 2 and the layer norm after it where cells are few, as between the stages for
// one image (Hopper and later).
//
// There is so little arithmetic that nearly all the time is waiting: for the weights, for a second launch, for the sum
// of partial results. So a cluster of RANKS thread blocks owns HIGH cells, and each of its ranks OWN channels of their
// results with all inputs that these need; the norm's statistics go through the cluster's shared memory. Fragments of
// cells and weights come straight from memory to registers, 16 bytes a lane: in which order a product adds up its depth
// is free, so a lane's eight elements stand for four places of two steps. Many are requested before the first is
// needed, and before any of them all weights are prefetched into the L2 cache.
//
// The warps share the cells (TILES of 16), and the depth among those of a tile. All sums have a fixed order. The two
// phases leave nothing in registers: the tests run them one by one.
//
// Defined at compile time: T, MAPS, HEIGHT, WIDTH, CHANNELS (of the input), RESULTS (channels of the result), RANKS,
// TILES, AHEAD (steps requested at once), THREADS, SHARED_BYTES.

extern __shared__ unsigned char smem[];

__host__ __device__ constexpr int cover(int n, int by) { return (n + by - 1) / by; }

constexpr int H = HEIGHT, W = WIDTH, C = CHANNELS, D = RESULTS, ROWS = cover(H, 2), COLUMNS = cover(W, 2),
              CELLS = MAPS * ROWS * COLUMNS;
constexpr int OWN = D / RANKS, COLUMN_BLOCKS = OWN / 8, HIGH = 16 * TILES, WARPS = THREADS / 32, SHARES = WARPS / TILES;
constexpr int OCTETS = C / 8, CHUNKS = 9 * OCTETS, STEPS = cover(CHUNKS, 4), TURNS = cover(STEPS, SHARES * AHEAD);
constexpr int PITCH = OWN % 16 ? OWN : OWN + 8;          // 8 or 24 modulo 32: rows of a fragment hit all banks
constexpr int ACROSS = THREADS / HIGH, PAIRS = OWN / 2;  // threads of a cell in the norm, and its pairs of channels
// shift, gain and bias
constexpr int AT_STATISTICS = 4 * SHARES * HIGH * PITCH, AT_VECTORS = AT_STATISTICS + 8 * RANKS * HIGH,
              BYTES = AT_VECTORS + 3 * 2 * OWN;
static_assert(BYTES == SHARED_BYTES, "gpu_few_cells.py counts otherwise");
static_assert(C % 8 == 0 && D % (8 * RANKS) == 0 && WARPS % TILES == 0 && ACROSS <= 32, "sizes");

struct Owner {
  int rank = blockIdx.x % RANKS, cell0 = blockIdx.x / RANKS * HIGH, channel0 = rank * OWN;
};

__device__ __forceinline__ float2* statistics(int rank) { return (float2*)(smem + AT_STATISTICS) + rank * HIGH; }

// Where a cell's first tap would lie in the map, and which rows and columns of taps lie inside.
struct Seen {
  const T* from;
  int row, column;
  bool there;
  __device__ __forceinline__ Seen(const T* x, int cell) {
    there = cell < CELLS;
    row = cell / COLUMNS % ROWS * 2 - 1, column = cell % COLUMNS * 2 - 1;
    from = x + (((i64)(cell / (ROWS * COLUMNS)) * H + row) * W + column) * C;
  }
  __device__ __forceinline__ uint4 load(int tap, int channel, bool valid) const {
    const int down = tap / 3, across = tap % 3;
    const bool inside =
        valid && there && row + down >= 0 && row + down < H && column + across >= 0 && column + across < W;
    return inside ? __ldg((const uint4*)(from + (down * W + across) * C + channel)) : make_uint4(0, 0, 0, 0);
  }
};

// Prefetch the rank's weights, which clusters share, into the L2 cache, and shift, gain and bias of its channels.
__device__ __forceinline__ void ask_ahead(const T* w) {
  const Owner own;
  constexpr int CLUSTERS = cover(CELLS, HIGH), SLICE = OWN * 9 * C * 2, PART = cover(SLICE, 16 * CLUSTERS) * 16;
  const int begin = blockIdx.x / RANKS * PART, bytes = SLICE - begin < PART ? SLICE - begin : PART;
  if (threadIdx.x == 0 && bytes > 0) prefetch_l2((const char*)(w + (i64)own.channel0 * 9 * C) + begin, bytes);
}
__device__ __forceinline__ T* vectors(int which) { return (T*)(smem + AT_VECTORS) + which * OWN; }
__device__ __forceinline__ void fetch_vectors(const T* shift, const T* gain, const T* bias) {
  const Owner own;
  const int which = threadIdx.x / COLUMN_BLOCKS, at = threadIdx.x % COLUMN_BLOCKS * 8;
  if (which < 3) {
    const T* from = which == 0 ? shift : which == 1 ? gain : bias;
    cp_async_16(vectors(which) + at, from ? from + own.channel0 + at : gain, from != nullptr);
  }
  cp_async_commit();
}

__device__ __forceinline__ void product(const T* x, const T* w) {
  const Owner own;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, tile = warp % TILES, share = warp / TILES;
  const Seen upper(x, own.cell0 + 16 * tile + lane / 4), lower(x, own.cell0 + 16 * tile + lane / 4 + 8);
  const T* weights = w + (i64)(own.channel0 + lane / 4) * 9 * C;
  float acc[COLUMN_BLOCKS][4];
#pragma unroll
  for (int j = 0; j < COLUMN_BLOCKS; j++)
#pragma unroll
    for (int e = 0; e < 4; e++) acc[j][e] = 0.f;
#pragma unroll 1
  for (int turn = 0; turn < TURNS; turn++) {
    uint4 a[AHEAD][2], b[AHEAD][COLUMN_BLOCKS];
#pragma unroll
    for (int s = 0; s < AHEAD; s++) {
      const int chunk = 4 * ((turn * AHEAD + s) * SHARES + share) + lane % 4;
      const bool valid = chunk < CHUNKS;
      const int tap = chunk / OCTETS, channel = chunk % OCTETS * 8;
#pragma unroll
      for (int j = 0; j < COLUMN_BLOCKS; j++)
        b[s][j] = valid ? __ldg((const uint4*)(weights + j * 8 * 9 * C + 8 * chunk)) : make_uint4(0, 0, 0, 0);
      a[s][0] = upper.load(tap, channel, valid), a[s][1] = lower.load(tap, channel, valid);
    }
#pragma unroll
    for (int s = 0; s < AHEAD; s++) {
      const u32 first[4] = {a[s][0].x, a[s][1].x, a[s][0].y, a[s][1].y},
                second[4] = {a[s][0].z, a[s][1].z, a[s][0].w, a[s][1].w};
#pragma unroll
      for (int j = 0; j < COLUMN_BLOCKS; j++) {
        mma_16816<T>(acc[j], first, b[s][j].x, b[s][j].y);
        mma_16816<T>(acc[j], second, b[s][j].z, b[s][j].w);
      }
    }
  }
  float* to = (float*)smem + (share * HIGH + 16 * tile + lane / 4) * PITCH + lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < COLUMN_BLOCKS; j++) {
    *(float2*)(to + 8 * j) = make_float2(acc[j][0], acc[j][1]);
    *(float2*)(to + 8 * j + 8 * PITCH) = make_float2(acc[j][2], acc[j][3]);
  }
}

__device__ __forceinline__ float over_cell(float sum) {
#pragma unroll
  for (int mask = 1; mask < ACROSS; mask *= 2) sum += shfl_xor(sum, mask);
  return sum;
}

// Adds up the shares; mean and squared distances of the rank's channels go to all ranks.
__device__ __forceinline__ void measure() {
  const Owner own;
  const int row = threadIdx.x / ACROSS, part = threadIdx.x % ACROSS;
  float2* values = (float2*)((float*)smem + row * PITCH);
  float sum = 0.f;
  for (int pair = part; pair < PAIRS; pair += ACROSS) {
    const u32 shift = *(const u32*)(vectors(0) + 2 * pair);
    float2 value = make_float2(lo_float<T>(shift), hi_float<T>(shift));
#pragma unroll
    for (int share = 0; share < SHARES; share++) {
      const float2 other = values[share * HIGH * PITCH / 2 + pair];
      value.x += other.x, value.y += other.y;
    }
    values[pair] = value;
    sum += value.x + value.y;
  }
  const float mean = over_cell(sum) * (1.f / OWN);
  float squares = 0.f;
  for (int pair = part; pair < PAIRS; pair += ACROSS) {
    const float2 value = values[pair];
    squares += (value.x - mean) * (value.x - mean) + (value.y - mean) * (value.y - mean);
  }
  squares = over_cell(squares);
  for (int rank = part; rank < RANKS; rank += ACROSS)
    push(statistics(own.rank) + row, rank, make_float2(mean, squares));
}

__device__ __forceinline__ void norm(T* out, float eps) {
  const Owner own;
  const int row = threadIdx.x / ACROSS, part = threadIdx.x % ACROSS;
  if (own.cell0 + row >= CELLS) return;
  const float2* values = (const float2*)((const float*)smem + row * PITCH);
  float mean = 0.f, squares = 0.f;
#pragma unroll
  for (int rank = 0; rank < RANKS; rank++) mean += statistics(rank)[row].x * (1.f / RANKS);
#pragma unroll
  for (int rank = 0; rank < RANKS; rank++) {
    const float2 theirs = statistics(rank)[row];
    squares += theirs.y + OWN * (theirs.x - mean) * (theirs.x - mean);
  }
  const float scale = rsqrtf(squares * (1.f / D) + eps);
  for (int pair = part; pair < PAIRS; pair += ACROSS) {
    const u32 factor = *(const u32*)(vectors(1) + 2 * pair), offset = *(const u32*)(vectors(2) + 2 * pair);
    const float2 value = values[pair];
    const float low = (value.x - mean) * scale * lo_float<T>(factor) + lo_float<T>(offset);
    const float high = (value.y - mean) * scale * hi_float<T>(factor) + hi_float<T>(offset);
    *(u32*)(out + (i64)(own.cell0 + row) * D + own.channel0 + 2 * pair) = pack2<T>(low, high);
  }
}

// x: channels-last [MAPS][H][W][C]; w: [D][3][3][C]; out: [CELLS][D]; shift may be null.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    conv_norm_few_cells(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ shift,
                        const T* __restrict__ gain, const T* __restrict__ bias, T* out, float eps) {
  ask_ahead(w);
  overlap_launches();
  if (RANKS > 1) cluster_arrive();
  fetch_vectors(shift, gain, bias);
  product(x, w);
  cp_async_wait<0>();
  __syncthreads();
  if (RANKS > 1) cluster_wait();                         // all ranks run, and can be written to
  measure();
  if (RANKS > 1) {
    cluster_arrive();
    cluster_wait();
  } else __syncthreads();
  norm(out, eps);
}
