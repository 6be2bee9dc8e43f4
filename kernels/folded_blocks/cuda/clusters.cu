// A run of blocks in inference form on one image, in one launch, by clusters of thread blocks (Hopper and later).
//
// blocks.cu waits for the whole grid three times a block. Here a cluster owns whole rows of the map, and a thread block
// in it (its rank) owns channels and hidden columns; what only the owners of the same rows need goes through the
// cluster's shared memory. The whole grid waits twice a block:
//
//   mix      the rank's channels of the map, with the rows around its own, are convolved; squeeze-excite's first
//            layer, in shares of channels
//   gate     the gate of the rank's channels; their cells, scaled, go to all ranks
//   expand   cells times the rank's part of the first weights; bias, GELU, sums of squares for GRN
//            -- the grid waits: GRN's sums
//   norms    GRN's norms of the rank's columns, and the ranks' shares in their mean
//   contract cells of hidden columns, by GRN's factor, times the rank's part of the second weights; each rank
//   gets the shares in its channels
//   collect  the shares, bias and residual: the rank's channels of the map; their shares in the next squeeze
//            -- the grid waits: rows around
//
// The mean over the map that squeeze-excite needs is one of the convolution's results, but it is a sum over the
// convolution's input as well: each cell counts with the sum of the taps that meet it without leaving the map
// (`cover`). So it is known one wait earlier.
//
// What goes to other ranks is put together first, and goes as one bulk copy to each: scattered stores take twice as
// long. A rank's own share stands in its place at once. Weights are fetched while the grid waits, or something else is
// on its way; the next block's taps are laid out while the grid waits, a part in each wait, since one hides some 1000
// clocks. Every phase leaves what the next one needs in memory, nothing in registers: the tests run them one by one.
// All sums have a fixed order.
//
// Defined at compile time: T, HEIGHT, WIDTH, CHANNELS, HIDDEN, SQUEEZED, BLOCKS, SMALL and LARGE (kernel sizes), ROWS
// (of a cluster), RANKS (blocks of threads of a cluster), TILE (columns of a thread), THREADS, SHARED_BYTES.

constexpr int H = HEIGHT, W = WIDTH, C = CHANNELS, N = HIDDEN, R = SQUEEZED, CELLS = H * W;
// cells of a cluster, and filled up to a product's rows
constexpr int CLUSTERS = cover(H, ROWS), OWN = ROWS * W, HIGH = (OWN + 15) / 16 * 16;
// of a rank; the second product's depth
constexpr int OWN_C = C / RANKS, OWN_N = N / RANKS, DEEP = (OWN_N + 15) / 16 * 16;
constexpr int PITCH1 = C + 8, PITCH2 = DEEP + 8;
constexpr int V = OWN_C % 4 ? 2 : 4, VECTORS = OWN_C / V;                                     // channels of a vector
template <int> struct Elements;
template <> struct Elements<4> { typedef uint2 Narrow; typedef float4 Wide; };
template <> struct Elements<2> { typedef u32 Narrow; typedef float2 Wide; };
typedef Elements<V>::Narrow Narrow;
typedef Elements<V>::Wide Wide;
typedef Some<V> Vector;

// ---- The convolution: a line is TILE outputs of one channel, which threads share by rows of the kernel
constexpr int TILES_W = cover(W, TILE), LINES = ROWS * TILES_W;
__host__ __device__ constexpr int shares(int k) { return smaller(k, larger(1, THREADS / (OWN_C * LINES))); }
__host__ __device__ constexpr int plane_pitch(int k) { return (TILES_W * TILE + k - 1 + 3) / 4 * 4; }
// 4 modulo 32: eight planes hit all banks
__host__ __device__ constexpr int plane_size(int k) { return ((ROWS + k - 1) * plane_pitch(k) + 27) / 32 * 32 + 4; }
__host__ __device__ constexpr int taps_pitch(int k) { return (k + 3) / 4 * 4; }
__host__ __device__ constexpr int taps_size(int k) { return (k * taps_pitch(k) + 27) / 32 * 32 + 4; }
__host__ __device__ constexpr int lines_size(int k) {
  return larger(shares(k) * LINES * TILE * OWN_C, OWN_C * ROWS * k);
}

// ---- The products
constexpr int SHARES1 = smaller(4, larger(1, depth_shares(HIGH, C) / column_shares(HIGH, OWN_N, C)));
constexpr int HIGH_TILES = HIGH / 16, COLUMN_SHARES2 = larger(cover(C / 8, 10), WARPS / HIGH_TILES),
              BLOCKS2 = cover(C / 8, COLUMN_SHARES2);

// ---- Shared memory, in bytes: weights, what other ranks write, what a rank keeps for itself
// later the shares that go to the ranks, [RANKS][OWN][OWN_C]
constexpr int AT_BARRIERS = 0, AT_FIRST = 128;
constexpr int AT_SECOND = AT_FIRST + aligned(larger(2 * OWN_N * PITCH1, 4 * RANKS * OWN * OWN_C)),
              AT_RAW = AT_SECOND + aligned(2 * C * PITCH2);
constexpr int AT_DOWN = AT_RAW + aligned(2 * OWN_C * LARGE * LARGE), AT_UP = AT_DOWN + aligned(2 * R * OWN_C);
constexpr int AT_CONV_BIAS = AT_UP + aligned(2 * R * OWN_C), AT_DOWN_BIAS = AT_CONV_BIAS + aligned(2 * OWN_C),
              AT_UP_BIAS = AT_DOWN_BIAS + aligned(2 * R);
constexpr int AT_FIRST_BIAS = AT_UP_BIAS + aligned(2 * OWN_C), AT_GAMMA = AT_FIRST_BIAS + aligned(2 * OWN_N),
              AT_SECOND_BIAS = AT_GAMMA + aligned(2 * OWN_N);
// [RANKS][OWN][OWN_C], from all ranks, then [HIGH][PITCH1]; then squares
constexpr int AT_ROWS = AT_SECOND_BIAS + aligned(2 * OWN_C);
// [RANKS][R], [RANKS], from all ranks
constexpr int AT_SQUEEZE = AT_ROWS + aligned(larger(2 * HIGH * PITCH1, 32 * THREADS)),
              AT_TOTALS = AT_SQUEEZE + aligned(4 * RANKS * R);
// [HIGH][PITCH2]; [OWN][OWN_C], the residual
constexpr int AT_HIDDEN = AT_TOTALS + aligned(4 * RANKS), AT_CARRIED = AT_HIDDEN + aligned(2 * HIGH * PITCH2);
constexpr int AT_COVER = AT_CARRIED + aligned(2 * OWN * OWN_C), AT_MIXED = AT_COVER + aligned(4 * OWN * OWN_C);
constexpr int AT_GATED = AT_MIXED + aligned(4 * OWN * OWN_C), AT_TAPS = AT_GATED + aligned(2 * OWN * OWN_C),
              AT_LINES = AT_TAPS + aligned(4 * OWN_C * larger(taps_size(SMALL), taps_size(LARGE)));
constexpr int AT_SMALL = AT_LINES + aligned(4 * larger(lines_size(SMALL), lines_size(LARGE)));
constexpr int AT_MEAN = AT_SMALL, AT_GATE = AT_MEAN + 128, AT_PART = AT_GATE + 128, AT_FACTOR = AT_PART + 4 * THREADS,
              AT_TURNS = AT_FACTOR + aligned(4 * DEEP);
// One after the other: the map's planes; the sums of the first product; from all ranks, their shares in the
// second, [RANKS][OWN][OWN_C].
constexpr int PLANES = 4 * OWN_C * larger(plane_size(SMALL), plane_size(LARGE)),
              SUMS1 = 4 * SHARES1 * HIGH * (OWN_N + 4), PARTS = 4 * RANKS * OWN * OWN_C;
constexpr int BYTES = AT_TURNS + larger(PLANES, larger(SUMS1, PARTS));
static_assert(BYTES == SHARED_BYTES, "gpu_clusters.py counts otherwise");
static_assert(C % 16 == 0 && C % (2 * RANKS) == 0 && N % (8 * RANKS) == 0 && R % 4 == 0 && R <= THREADS &&
                  OWN_C <= 32 && OWN_N <= THREADS && OWN * OWN_C % 8 == 0,
              "sizes");

struct Places {
  const T* x;
  T *carried, *out;                                      // [CELLS][C]
  float *squeezed, *squares;                             // [CLUSTERS][C], [CLUSTERS][N]
};
struct Owner {
  int rank = blockIdx.x % RANKS, cluster = blockIdx.x / RANKS, row0 = cluster * ROWS, cells = min(ROWS, H - row0) * W,
      channel0 = rank * OWN_C;
};

// Barriers for the first weights, the cells of all ranks, and their shares in the second product.
__device__ __forceinline__ u64* barrier(int which) { return (u64*)(smem + AT_BARRIERS) + which; }
constexpr int FIRST = 0, GATHERED = 1, SCATTERED = 2;
constexpr int CELLS_BYTES = 2 * OWN * OWN_C, SHARE_BYTES = 4 * OWN * OWN_C;

__device__ __forceinline__ Some<4> spread(float4 a) { return {{a.x, a.y, a.z, a.w}}; }
__device__ __forceinline__ Some<2> spread(float2 a) { return {{a.x, a.y}}; }
__device__ __forceinline__ Vector load(const T* from) { return widened(*(const Narrow*)from); }
__device__ __forceinline__ Vector load(const float* from) { return spread(*(const Wide*)from); }

// The rank that this thread sends a bulk copy to, or -1: a warp makes its copies one by one, so all warps share them;
// each rank begins with itself, so that not all write to the same one at first.
__device__ __forceinline__ int rank_to_serve() {
  constexpr int EVERY = THREADS / RANKS;
  return threadIdx.x % EVERY ? -1 : (int)((threadIdx.x / EVERY + blockIdx.x) % RANKS);
}

// ---- Weights on their way
// `count` elements, a multiple of a vector; zeros where there are none.
__device__ __forceinline__ void fetch(int at, const T* from, const T* anything, int count) {
  for (int i = V * threadIdx.x; i < count; i += V * THREADS) {
    if (V == 4) cp_async_8(smem + at + 2 * i, from ? from + i : anything, from != nullptr);
    else cp_async_4(smem + at + 2 * i, from ? from + i : anything, from != nullptr);
  }
}

__device__ __forceinline__ void fetch_taps(const Chain& chain, u64 large, int block) {
  if (block >= BLOCKS) return;
  const Owner own;
  const Weights& w = chain.blocks[block];
  const int k = is_large(large, block) ? LARGE : SMALL;
  fetch(AT_RAW, w.conv + (i64)own.channel0 * k * k, w.conv, OWN_C * k * k);
}

// The small ones of mix, gate and expand.
__device__ __forceinline__ void fetch_small(const Chain& chain, int block) {
  if (block < BLOCKS) {
    const Owner own;
    const Weights& w = chain.blocks[block];
    for (int i = threadIdx.x; i < R * VECTORS; i += THREADS) {
      T* to = (T*)(smem + AT_DOWN) + V * i;
      const T* from = w.down + i / VECTORS * C + own.channel0 + i % VECTORS * V;
      if (V == 4) cp_async_8(to, from, true);
      else cp_async_4(to, from, true);
    }
    fetch(AT_UP, w.up + own.channel0 * R, w.conv, OWN_C * R);
    fetch(AT_CONV_BIAS, w.conv_bias ? w.conv_bias + own.channel0 : nullptr, w.conv, OWN_C);
    fetch(AT_DOWN_BIAS, w.down_bias, w.conv, R);
    fetch(AT_UP_BIAS, w.up_bias + own.channel0, w.conv, OWN_C);
    fetch(AT_FIRST_BIAS, w.first_bias + own.rank * OWN_N, w.conv, OWN_N);
  }
  cp_async_commit();
}

// By bulk copies, which leave the threads alone, but take their time one by one: by the last threads, as the
// first one waits for the grid.
__device__ __forceinline__ void fetch_first(const Chain& chain, int block) {
  if (block >= BLOCKS) return;
  const Owner own;
  if (threadIdx.x == THREADS - 1) expect_bytes(barrier(FIRST), 2 * OWN_N * C);
  for (int i = THREADS - 1 - threadIdx.x; i < OWN_N; i += THREADS)
    bulk_copy((T*)(smem + AT_FIRST) + i * PITCH1, chain.blocks[block].first + (i64)(own.rank * OWN_N + i) * C, 2 * C,
              barrier(FIRST));
}

// The second weights, in rows too short for bulk copies, the small ones of contract and collect,
// and the taps of the next block.
__device__ __forceinline__ void fetch_second(const Chain& chain, u64 large, int block) {
  const Owner own;
  const Weights& w = chain.blocks[block];
  copy_rows<2 * OWN_N>((T*)(smem + AT_SECOND), w.second + own.rank * OWN_N, C, C, N, PITCH2);
  fetch(AT_GAMMA, w.gamma + own.rank * OWN_N, w.conv, OWN_N);
  fetch(AT_SECOND_BIAS, w.second_bias ? w.second_bias + own.channel0 : nullptr, w.conv, OWN_C);
  fetch_taps(chain, large, block + 1);
  cp_async_commit();
}

// How much each of the rank's cells counts in the sum over the convolution's results.
template <int K> __device__ __forceinline__ void weigh_cells() {
  const Owner own;
  constexpr int REACH = K / 2;
  const T* raw = (const T*)(smem + AT_RAW);
  float *columns = (float*)(smem + AT_LINES), *counts = (float*)(smem + AT_COVER);
  for (int i = threadIdx.x; i < OWN_C * K; i += THREADS) {
    const int channel = i / K, kw = i % K;
    float sums[ROWS] = {};
#pragma unroll
    for (int kh = 0; kh < K; kh++) {
      const float tap = to_float(raw[(channel * K + kh) * K + kw]);
#pragma unroll
      for (int r = 0; r < ROWS; r++) sums[r] += kh > own.row0 + r + REACH - H && kh <= own.row0 + r + REACH ? tap : 0.f;
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) columns[(channel * ROWS + r) * K + kw] = sums[r];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < W * OWN_C; i += THREADS) {
    const int channel = i % OWN_C, col = i / OWN_C;
    float sums[ROWS] = {};
#pragma unroll
    for (int kw = 0; kw < K; kw++) {
      const bool met = kw > col + REACH - W && kw <= col + REACH;
#pragma unroll
      for (int r = 0; r < ROWS; r++) sums[r] += met ? columns[(channel * ROWS + r) * K + kw] : 0.f;
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) counts[r * W * OWN_C + i] = sums[r];
  }
}
__device__ __forceinline__ void weigh_cells(u64 large, int block) {
  if (is_large(large, block)) weigh_cells<LARGE>();
  else weigh_cells<SMALL>();
}

// The taps in rows of whole vectors.
template <int K> __device__ __forceinline__ void lay_out() {
  constexpr int PITCH = taps_pitch(K), SIZE = taps_size(K), PAIRS = OWN_C * K * K / 2;
  const u32* raw = (const u32*)(smem + AT_RAW);
  float* taps = (float*)(smem + AT_TAPS);
#pragma unroll
  for (int j = 0; j < cover(PAIRS, THREADS); j++) {
    const int pair = threadIdx.x + j * THREADS;
    if (pair >= PAIRS) break;
    const u32 both = raw[pair];
    const int rows[2] = {2 * pair / K, (2 * pair + 1) / K};
    taps[rows[0] / K * SIZE + rows[0] % K * PITCH + 2 * pair - rows[0] * K] = lo_float<T>(both);
    taps[rows[1] / K * SIZE + rows[1] % K * PITCH + 2 * pair + 1 - rows[1] * K] = hi_float<T>(both);
  }
}
__device__ __forceinline__ void lay_out(u64 large, int block) {
  if (is_large(large, block)) lay_out<LARGE>();
  else lay_out<SMALL>();
}

// ---- Phases
// A cell's values count towards the sum of the convolution that comes.
__device__ __forceinline__ void count(int i, const Vector& value) {
  const Vector weight = load((const float*)(smem + AT_COVER) + i);
  float* counted = (float*)(smem + AT_MIXED) + i;
#pragma unroll
  for (int e = 0; e < V; e++) counted[e] = value.v[e] * weight.v[e];
}

// The sums of what the rank's cells count, a channel each.
__device__ __forceinline__ void pool(const Places& at) {
  const Owner own;
  __syncthreads();
  const float* counted = (const float*)(smem + AT_MIXED);
  const int channel = threadIdx.x / 8, part = threadIdx.x % 8;
  float sum = 0.f;
  if (channel < OWN_C)
    for (int cell = part; cell < own.cells; cell += 8) sum += counted[cell * OWN_C + channel];
  for (int mask = 1; mask < 8; mask *= 2) sum += shfl_xor(sum, mask);
  if (channel < OWN_C && part == 0) at.squeezed[own.cluster * C + own.channel0 + channel] = sum;
}

// Before the first block: its residual, and what counts of it.
__device__ __forceinline__ void start(const Chain& chain, u64 large, const Places& at) {
  const Owner own;
  if (threadIdx.x == 0)
    for (int i = 0; i < 3; i++) make_bytes_barrier(barrier(i));
  fetch_taps(chain, large, 0);
  cp_async_commit();
  for (int i = threadIdx.x; i < own.cells * VECTORS; i += THREADS) {
    const i64 from = (i64)(own.row0 * W + i / VECTORS) * C + own.channel0 + i % VECTORS * V;
    ((Narrow*)(smem + AT_CARRIED))[i] = __ldg((const Narrow*)(at.x + from));
  }
  if (DEEP > OWN_N) {                                    // columns that fill up the second product's depth
    for (int i = threadIdx.x; i < HIGH + C; i += THREADS)
      *(uint4*)(smem + (i < HIGH ? AT_HIDDEN + 2 * i * PITCH2 : AT_SECOND + 2 * (i - HIGH) * PITCH2) + 2 * OWN_N) =
          make_uint4(0, 0, 0, 0);
  }
  cp_async_wait<0>();
  __syncthreads();
  weigh_cells(large, 0);
  __syncthreads();
  for (int i = threadIdx.x; i < own.cells * VECTORS; i += THREADS)
    count(V * i, load((const T*)(smem + AT_CARRIED) + V * i));
  pool(at);
}

template <int K> __device__ __forceinline__ void mix(const Chain& chain, u64 large, const Places& at, int block) {
  const Owner own;
  constexpr int REACH = K / 2, PITCH = plane_pitch(K), PLANE = plane_size(K),
                EACH = cover(smaller(H, ROWS + K - 1) * W * VECTORS, THREADS);
  const T* map = block ? at.carried : at.x;
  float *planes = (float*)(smem + AT_TURNS), *lines = (float*)(smem + AT_LINES), *mean = (float*)(smem + AT_MEAN),
        *part = (float*)(smem + AT_PART);
  const float* taps = (const float*)(smem + AT_TAPS);
  const int first = max(own.row0 - REACH, 0), seen = (min(own.row0 + ROWS + REACH, H) - first) * W * VECTORS;
  Narrow raw[EACH];
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    const int i = threadIdx.x + j * THREADS;
    if (i < seen)
      raw[j] = __ldcg((const Narrow*)(map + (i64)(first * W + i / VECTORS) * C + own.channel0 + i % VECTORS * V));
  }
  float counted[CLUSTERS];
  if (threadIdx.x < OWN_C)
#pragma unroll
    for (int q = 0; q < CLUSTERS; q++) counted[q] = __ldcg(at.squeezed + q * C + own.channel0 + threadIdx.x);
  fetch_second(chain, large, block);                     // while these are on their way
  for (int i = threadIdx.x; i < OWN_C * PLANE / 4; i += THREADS) ((float4*)planes)[i] = make_float4(0.f, 0.f, 0.f, 0.f);
  if (threadIdx.x < OWN_C) {
    float sum = 0.f;
#pragma unroll
    for (int q = 0; q < CLUSTERS; q++) sum += counted[q];
    mean[threadIdx.x] = sum * (1.f / CELLS);
  }
  cp_async_wait<1>();                                    // all that fetch_small has fetched
  __syncthreads();
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    const int i = threadIdx.x + j * THREADS, cell = i / VECTORS, row = first + cell / W, col = cell % W;
    if (i >= seen) break;
    const Vector value = widened(raw[j]);
#pragma unroll
    for (int e = 0; e < V; e++)
      planes[(i % VECTORS * V + e) * PLANE + (row - own.row0 + REACH) * PITCH + col + REACH] = value.v[e];
  }
  if (threadIdx.x < R) {                                 // these channels' share in squeeze-excite's first layer
    const T *down = (const T*)(smem + AT_DOWN) + threadIdx.x * OWN_C, *bias = (const T*)(smem + AT_CONV_BIAS);
    float share = 0.f;
#pragma unroll
    for (int c = 0; c < OWN_C; c += V) {
      const Vector weight = load(down + c), shift = load(bias + c);
#pragma unroll
      for (int e = 0; e < V; e++) share += weight.v[e] * (mean[c + e] + shift.v[e]);
    }
    part[threadIdx.x] = share;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < RANKS * (R / 4); i += THREADS)
    push((float*)(smem + AT_SQUEEZE) + own.rank * R + i % (R / 4) * 4, i / (R / 4), ((const float4*)part)[i % (R / 4)]);
  cluster_arrive();
  for (int item = threadIdx.x; item < OWN_C * LINES * shares(K); item += THREADS) {
    const int channel = item % OWN_C, line = item / OWN_C % LINES, share = item / (OWN_C * LINES), row = line / TILES_W,
              col = line % TILES_W * TILE;
    // Other rows of the kernel see only padding.
    const int begin = max(share * K / shares(K), REACH - own.row0 - row),
              end = min((share + 1) * K / shares(K), H + REACH - own.row0 - row);
    float acc[TILE];
    convolve<K, TILE, PITCH, taps_pitch(K)>(acc, planes + channel * PLANE + row * PITCH + col,
                                            taps + channel * taps_size(K), begin, end);
    float* to = lines + (i64)(share * LINES + line) * TILE * OWN_C + channel;
#pragma unroll
    for (int j = 0; j < TILE; j++) to[j * OWN_C] = acc[j];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < own.cells * VECTORS; i += THREADS) {
    const int channel = i % VECTORS * V, row = i / VECTORS / W, col = i / VECTORS % W;
    const float* line = lines + ((row * TILES_W + col / TILE) * TILE + col % TILE) * OWN_C + channel;
    Vector value = load((const T*)(smem + AT_CONV_BIAS) + channel);
#pragma unroll
    for (int share = 0; share < shares(K); share++) {
      const Vector a = load(line + share * LINES * TILE * OWN_C);
#pragma unroll
      for (int e = 0; e < V; e++) value.v[e] += a.v[e];
    }
#pragma unroll
    for (int e = 0; e < V; e++) ((float*)(smem + AT_MIXED))[V * i + e] = value.v[e];
  }
  cluster_wait();
}

__device__ __forceinline__ void gate() {
  const Owner own;
  float *hidden = (float*)(smem + AT_PART), *gates = (float*)(smem + AT_GATE);
  if (threadIdx.x < R) {
    float sum = to_float(((const T*)(smem + AT_DOWN_BIAS))[threadIdx.x]);
#pragma unroll
    for (int rank = 0; rank < RANKS; rank++) sum += ((const float*)(smem + AT_SQUEEZE))[rank * R + threadIdx.x];
    hidden[threadIdx.x] = fmaxf(sum, 0.f);
  }
  __syncthreads();
  const int channel = threadIdx.x / 8, part = threadIdx.x % 8;
  float sum = 0.f;
  if (channel < OWN_C)
    for (int r = 2 * part; r < R; r += 16) {
      const Some<2> weight = widened(*(const u32*)((const T*)(smem + AT_UP) + channel * R + r));
      sum += weight.v[0] * hidden[r] + weight.v[1] * hidden[r + 1];
    }
  for (int mask = 1; mask < 8; mask *= 2) sum += shfl_xor(sum, mask);
  if (channel < OWN_C && part == 0) gates[channel] = sigmoid(sum + to_float(((const T*)(smem + AT_UP_BIAS))[channel]));
  __syncthreads();
  for (int i = threadIdx.x; i < own.cells * VECTORS; i += THREADS) {
    Vector value = load((const float*)(smem + AT_MIXED) + V * i);
    const Vector factor = load(gates + i % VECTORS * V);
#pragma unroll
    for (int e = 0; e < V; e++) value.v[e] *= factor.v[e];
    ((Narrow*)(smem + AT_GATED))[i] = ((Narrow*)(smem + AT_ROWS + own.rank * CELLS_BYTES))[i] = narrowed(value);
  }
  written_for_bulk();
  __syncthreads();
  if (threadIdx.x == 0) expect_bytes(barrier(GATHERED), (RANKS - 1) * CELLS_BYTES);
  const int to = rank_to_serve();
  if (to >= 0 && to != own.rank)
    bulk_push(smem + AT_ROWS + own.rank * CELLS_BYTES, to, smem + AT_GATED, CELLS_BYTES, barrier(GATHERED));
}

// The cells come rank by rank, and go to rows of all channels.
__device__ __forceinline__ void gather(int block) {
  constexpr int ITEMS = RANKS * OWN * VECTORS, EACH = cover(ITEMS, THREADS);
  Narrow kept[EACH];
  wait_bytes(barrier(GATHERED), block);
#pragma unroll
  for (int j = 0; j < EACH; j++) kept[j] = ((const Narrow*)(smem + AT_ROWS))[min(threadIdx.x + j * THREADS, ITEMS - 1)];
  __syncthreads();
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    const int i = threadIdx.x + j * THREADS, rank = i / (OWN * VECTORS), cell = i / VECTORS % OWN;
    if (i < ITEMS) *(Narrow*)((T*)(smem + AT_ROWS) + cell * PITCH1 + rank * OWN_C + i % VECTORS * V) = kept[j];
  }
  __syncthreads();
}

__device__ __forceinline__ void expand(const Places& at, int block) {
  const Owner own;
  // the rows are no longer needed then
  float *sums = (float*)(smem + AT_TURNS), *small = (float*)(smem + AT_PART), *seen = (float*)(smem + AT_ROWS);
  T* hidden = (T*)(smem + AT_HIDDEN);
  gather(block);
  wait_bytes(barrier(FIRST), block);
  multiply<HIGH, OWN_N, C, PITCH1, SHARES1>(sums, (const T*)(smem + AT_ROWS), (const T*)(smem + AT_FIRST));
  __syncthreads();
  constexpr int ACROSS = OWN_N / 8, DOWN = THREADS / ACROSS, SHARED = smaller(THREADS / OWN_N, DOWN);
  const int across = threadIdx.x % ACROSS, down = threadIdx.x / ACROSS;
  if (down < DOWN) {
    const Eight bias = widened(*(const uint4*)(smem + AT_FIRST_BIAS + 16 * across));
    Eight square = {};
    for (int row = down; row < own.cells; row += DOWN) {
      Eight value = sum_of<HIGH, OWN_N, SHARES1>(sums, row, 8 * across);
#pragma unroll
      for (int e = 0; e < 8; e++) {
        value.v[e] = gelu(value.v[e] + bias.v[e]);
        square.v[e] += value.v[e] * value.v[e];
      }
      *(uint4*)(hidden + row * PITCH2 + 8 * across) = narrowed(value);
    }
#pragma unroll
    for (int e = 0; e < 8; e++) seen[down * OWN_N + 8 * across + e] = square.v[e];
  }
  __syncthreads();
  const int column = threadIdx.x % OWN_N, part = threadIdx.x / OWN_N;
  if (part < SHARED) {
    float sum = 0.f;
    for (int d = part; d < DOWN; d += SHARED) sum += seen[d * OWN_N + column];
    small[part * OWN_N + column] = sum;
  }
  __syncthreads();
  if (threadIdx.x < OWN_N) {
    float sum = 0.f;
#pragma unroll
    for (int p = 0; p < SHARED; p++) sum += small[p * OWN_N + threadIdx.x];
    at.squares[own.cluster * N + own.rank * OWN_N + threadIdx.x] = sum;
  }
  written_for_bulk();                                    // where these sums and squares were, other ranks copy to
}

// While the grid waits for GRN's sums.
__device__ __forceinline__ void after_expand(u64 large, int block) {
  cp_async_wait<0>();                                    // all that fetch_second has fetched
  __syncthreads();
  if (block + 1 < BLOCKS) weigh_cells(large, block + 1);
}

__device__ __forceinline__ void norms(const Places& at) {
  const Owner own;
  float *norm = (float*)(smem + AT_FACTOR), *small = (float*)(smem + AT_PART);
  float total = 0.f, squares[CLUSTERS];
  if (threadIdx.x < OWN_N)
#pragma unroll
    for (int q = 0; q < CLUSTERS; q++) squares[q] = __ldcg(at.squares + q * N + own.rank * OWN_N + threadIdx.x);
  if (threadIdx.x < OWN_N) {
    float sum = 0.f;
#pragma unroll
    for (int q = 0; q < CLUSTERS; q++) sum += squares[q];
    norm[threadIdx.x] = total = sqrtf(sum);
  }
#pragma unroll
  for (int mask = 16; mask; mask /= 2) total += shfl_xor(total, mask);
  if (threadIdx.x % 32 == 0) small[threadIdx.x / 32] = total;
  __syncthreads();
  if (threadIdx.x < RANKS) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) sum += small[i];
    push((float*)(smem + AT_TOTALS) + own.rank, threadIdx.x, sum);
  }
  cluster_arrive();
  cluster_wait();
}

__device__ __forceinline__ void contract(int block) {
  const Owner own;
  float *factor = (float*)(smem + AT_FACTOR), *parts = (float*)(smem + AT_FIRST), *turns = (float*)(smem + AT_TURNS);
  T* hidden = (T*)(smem + AT_HIDDEN);
  float mean = 0.f;
#pragma unroll
  for (int rank = 0; rank < RANKS; rank++) mean += ((const float*)(smem + AT_TOTALS))[rank];
  const float by = 1.f / (mean * (1.f / N) + 1e-6f);
  if (threadIdx.x < DEEP)
    factor[threadIdx.x] = threadIdx.x < OWN_N
                              ? to_float(((const T*)(smem + AT_GAMMA))[threadIdx.x]) * factor[threadIdx.x] * by + 1.f
                              : 0.f;
  __syncthreads();
  scale<HIGH, DEEP, PITCH2>(hidden, factor);
  __syncthreads();
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int item = threadIdx.x / 32; item < HIGH_TILES * COLUMN_SHARES2; item += WARPS) {
    const int high = item % HIGH_TILES, block0 = item / HIGH_TILES * BLOCKS2;
    float acc[BLOCKS2][4];
#pragma unroll
    for (int j = 0; j < BLOCKS2; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[j][e] = 0.f;
    accumulate<BLOCKS2, C, PITCH2>(acc, hidden + 16 * high * PITCH2, (const T*)(smem + AT_SECOND), block0, 0,
                                   DEEP / 16);
#pragma unroll
    for (int j = 0; j < BLOCKS2; j++) {
      if (block0 + j >= C / 8) break;
      const int column = 8 * (block0 + j) + lane % 4 * 2, row = 16 * high + lane / 4;
      float* to = (column / OWN_C == own.rank ? turns : parts) + (column / OWN_C * OWN + row) * OWN_C + column % OWN_C;
      if (row < own.cells) *(float2*)to = make_float2(acc[j][0], acc[j][1]);
      if (row + 8 < own.cells) *(float2*)(to + 8 * OWN_C) = make_float2(acc[j][2], acc[j][3]);
    }
  }
  written_for_bulk();
  __syncthreads();
  if (threadIdx.x == 0) expect_bytes(barrier(SCATTERED), (RANKS - 1) * SHARE_BYTES);
  const int to = rank_to_serve();
  if (to >= 0 && to != own.rank)
    bulk_push(smem + AT_TURNS + own.rank * SHARE_BYTES, to, parts + to * OWN * OWN_C, SHARE_BYTES, barrier(SCATTERED));
}

__device__ __forceinline__ void collect(const Places& at, int block) {
  const Owner own;
  T* to = block + 1 < BLOCKS ? at.carried : at.out;
  wait_bytes(barrier(SCATTERED), block);
  cluster_arrive();                                      // when all have arrived, all copies have
  for (int i = threadIdx.x; i < own.cells * VECTORS; i += THREADS) {
    const float* part = (const float*)(smem + AT_TURNS) + V * i;
    Vector value = load((const T*)(smem + AT_SECOND_BIAS) + i % VECTORS * V);
    const Vector residual = load((const T*)(smem + AT_CARRIED) + V * i);
#pragma unroll
    for (int e = 0; e < V; e++) value.v[e] += residual.v[e];
#pragma unroll
    for (int rank = 0; rank < RANKS; rank++) {
      const Vector a = load(part + rank * OWN * OWN_C);
#pragma unroll
      for (int e = 0; e < V; e++) value.v[e] += a.v[e];
    }
    const Narrow rounded = narrowed(value);
    ((Narrow*)(smem + AT_CARRIED))[i] = rounded;
    *(Narrow*)(to + (i64)(own.row0 * W + i / VECTORS) * C + own.channel0 + i % VECTORS * V) = rounded;
    if (block + 1 < BLOCKS) count(V * i, widened(rounded));
  }
  if (block + 1 < BLOCKS) pool(at);
}

// `arrived` is 0 before the launch, which is cooperative, and after it.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    run_blocks_in_clusters(const T* __restrict__ x, const __grid_constant__ Chain chain, u64 large, T* carried,
                           float* squeezed, float* squares, T* out, u32* arrived) {
  overlap_launches();
  const Places at = {x, carried, out, squeezed, squares};
  u32 target = 0;
  start(chain, large, at);
  cluster_arrive();
  cluster_wait();                                        // all ranks run, and can be written to
  grid_arrive(arrived);
  fetch_small(chain, 0);
  lay_out(large, 0);
  fetch_first(chain, 0);
  grid_wait(arrived, target += gridDim.x);
#pragma unroll 1
  for (int block = 0; block < BLOCKS; block++) {
    if (is_large(large, block)) mix<LARGE>(chain, large, at, block);
    else mix<SMALL>(chain, large, at, block);
    gate();
    expand(at, block);
    grid_arrive(arrived);
    after_expand(large, block);
    grid_wait(arrived, target += gridDim.x);
    norms(at);
    contract(block);
    collect(at, block);
    if (block + 1 == BLOCKS) break;
    grid_arrive(arrived);
    fetch_small(chain, block + 1);
    lay_out(large, block + 1);
    cluster_wait();                                      // nothing is copied any more from where the weights go
    fetch_first(chain, block + 1);
    grid_wait(arrived, target += gridDim.x);
  }
  cluster_wait();
  grid_leave(arrived, target);
}
