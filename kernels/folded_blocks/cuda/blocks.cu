// A run of blocks in inference form on one small batch, in one launch: the layers' kernels without their
// launches.
//
// Every layer of such a block is a few microseconds of work for the whole GPU, and a launch costs as much.
// So one grid, with a thread block on each multiprocessor, goes through all of them in phases, separated
// by barriers of the whole grid:
//
//   mix       the map, summed up from the parts that the block before left; its depthwise convolution; the shares in
//             squeeze-excite's first layer
//   gate      where squeeze-excite's second layer does not fit into shared memory: its gate,
//             by all thread blocks together
//   expand    the gate into the weights of the first product; the product, its bias and
//             GELU; the sums of squares for GRN
//   contract  GRN's factor into the weights of the second product; the product, in parts of its
//             depth, with bias and residual
//
// While a phase runs, the weights of the next are on their way to shared memory, so that after the barrier only
// the map is missing. What one phase writes and another reads never passes the L1 cache, which would not see it.
// All sums have a fixed order.
//
// Defined at compile time: T, MAPS (images), HEIGHT, WIDTH, CHANNELS, HIDDEN, SQUEEZED, BLOCKS, SMALL and LARGE (kernel
// sizes), STRIP (rows of a strip), TILE (columns of a thread), GATE (is there that phase), ROWS1, COLS1 (a tile of the
// first product), ROWS2, COLS2, SPLITS (of the second), and THREADS.

constexpr int H = HEIGHT, W = WIDTH, C = CHANNELS, N = HIDDEN, R = SQUEEZED;
constexpr int CELLS = H * W, CELLS_ALL = MAPS * CELLS;

// ---- The geometry of the phases
constexpr int GROUPS = C / 8, STRIPS = cover(H, STRIP), MIX_UNITS = GROUPS * STRIPS * MAPS;
constexpr int TILES_W = cover(W, TILE), CELLS_W = TILES_W * TILE;
constexpr int LINES = STRIP * TILES_W;                   // of TILE outputs in a strip
// threads that share a line, by kernel rows
__host__ __device__ constexpr int shares(int k) { return smaller(k, larger(1, THREADS / 8 / LINES)); }
__host__ __device__ constexpr int plane_rows(int k) { return STRIP + k - 1; }
__host__ __device__ constexpr int plane_pitch(int k) { return (CELLS_W + k - 1 + 3) / 4 * 4; }
// 4 modulo 32: eight planes hit all banks
__host__ __device__ constexpr int plane_size(int k) { return (plane_rows(k) * plane_pitch(k) + 27) / 32 * 32 + 4; }
__host__ __device__ constexpr int taps_pitch(int k) { return (k + 3) / 4 * 4; }
__host__ __device__ constexpr int taps_size(int k) { return (k * taps_pitch(k) + 27) / 32 * 32 + 4; }
constexpr int LINE_PITCH = TILE * 8 + 8;                 // of a line of results of eight channels

constexpr int TILES1 = cover(CELLS, ROWS1), UNITS1 = MAPS * TILES1 * (N / COLS1), HIGH1 = (ROWS1 + 15) / 16 * 16,
              PITCH1 = C + 8;
constexpr int DEPTH2 = N / SPLITS, TILES2 = cover(CELLS, ROWS2), UNITS2 = MAPS * TILES2 * (C / COLS2) * SPLITS,
              HIGH2 = (ROWS2 + 15) / 16 * 16, PITCH2 = DEPTH2 + 8;
constexpr int PHASES = GATE ? 4 : 3;

constexpr int SHARES1 = smaller(4, larger(1, depth_shares(HIGH1, C) / column_shares(HIGH1, COLS1, C)));
constexpr int SHARES2 = smaller(4, larger(1, depth_shares(HIGH2, DEPTH2) / column_shares(HIGH2, COLS2, DEPTH2)));

// ---- Shared memory: weights on their way, each with a place of its own; then what a phase needs for itself
// squeeze-excite's second layer, its depth filled up with zeros
constexpr int DEEP_R = (R + 15) / 16 * 16, PITCH_UP = DEEP_R + 8;
constexpr int AT_TAPS = 0, AT_DOWN = AT_TAPS + aligned(8 * LARGE * LARGE * 2), AT_FIRST = AT_DOWN + aligned(R * 16);
constexpr int AT_UP = AT_FIRST + aligned(COLS1 * PITCH1 * 2),
              AT_SECOND = AT_UP + (GATE ? 0 : aligned(C * PITCH_UP * 2));
constexpr int AT_CONV_BIAS = AT_SECOND + aligned(COLS2 * PITCH2 * 2), AT_DOWN_BIAS = AT_CONV_BIAS + 128,
              AT_UP_BIAS = AT_DOWN_BIAS + aligned(2 * R);
constexpr int AT_FIRST_BIAS = AT_UP_BIAS + aligned(2 * C), AT_GAMMA = AT_FIRST_BIAS + aligned(2 * COLS1),
              AT_SECOND_BIAS = AT_GAMMA + aligned(2 * DEPTH2);
constexpr int AT_SMALL = AT_SECOND_BIAS + aligned(2 * COLS2), SMALL_FLOATS = larger(C, DEPTH2) + 64 + 4 * THREADS;
constexpr int AT_OWN = AT_SMALL + aligned(4 * SMALL_FLOATS);
__host__ __device__ constexpr int mix_bytes(int k) {
  return 4 * (8 * plane_size(k) + 8 * taps_size(k) + shares(k) * LINES * LINE_PITCH);
}
constexpr int OWN1 = larger(aligned(HIGH1 * PITCH1 * 2) + 4 * SHARES1 * HIGH1 * (COLS1 + 4), 32 * THREADS),
              OWN2 = aligned(HIGH2 * PITCH2 * 2) + aligned(HIGH2 * COLS2 * 2) + 4 * SHARES2 * HIGH2 * (COLS2 + 4);
constexpr int BYTES = AT_OWN + larger(larger(mix_bytes(SMALL), mix_bytes(LARGE)), larger(OWN1, OWN2));
static_assert(BYTES == SHARED_BYTES, "gpu.py counts otherwise");
static_assert(C % 16 == 0 && R % 4 == 0 && DEPTH2 % 16 == 0 && COLS1 % 8 == 0 && COLS2 % 8 == 0 && N % COLS1 == 0 &&
                  C % COLS2 == 0,
              "sizes");

// `count` elements, a multiple of four; zeros where there are none.
__device__ __forceinline__ void copy_vector(int at, const T* from, const T* anything, int count) {
  const int i = 4 * threadIdx.x;
  for (int j = i; j < count; j += 4 * THREADS)
    cp_async_8(smem + at + 2 * j, from ? from + j : anything, from != nullptr);
}

// What phase WHICH of a block needs of its weights.
template <int WHICH> __device__ __forceinline__ void prefetch(const Chain& chain, u64 large, int block) {
  const int unit = blockIdx.x;
  if (block >= BLOCKS) return;
  const Weights& w = chain.blocks[block];
  if (WHICH == 0 && unit < MIX_UNITS) {
    const int k = is_large(large, block) ? LARGE : SMALL, channel0 = unit % GROUPS * 8;
    T* taps = (T*)(smem + AT_TAPS);
    for (int i = threadIdx.x; i < k * k; i += THREADS)
      cp_async_16(taps + 8 * i, w.conv + (i64)channel0 * k * k + 8 * i, true);
    T* down = (T*)(smem + AT_DOWN);
    for (int r = threadIdx.x; r < R; r += THREADS) cp_async_16(down + 8 * r, w.down + (i64)r * C + channel0, true);
    copy_vector(AT_CONV_BIAS, w.conv_bias ? w.conv_bias + channel0 : nullptr, w.conv, 8);
  }
  if (WHICH == 1 && (GATE || unit < UNITS1)) {           // others would never wait for them
    copy_vector(AT_DOWN_BIAS, w.down_bias, w.conv, R);
    copy_vector(AT_UP_BIAS, w.up_bias, w.conv, C);
  }
  if (WHICH == PHASES - 2 && unit < UNITS1) {
    copy_rows<2 * C>((T*)(smem + AT_FIRST), w.first + (i64)(unit % (N / COLS1)) * COLS1 * C, COLS1, COLS1, C, PITCH1);
    copy_vector(AT_FIRST_BIAS, w.first_bias + unit % (N / COLS1) * COLS1, w.conv, COLS1);
    if (!GATE) {
      constexpr int STEP = R % 8 ? 4 : 8, ACROSS = R / STEP;
      for (int i = threadIdx.x; i < C * ACROSS; i += THREADS) {
        T* to = (T*)(smem + AT_UP) + i / ACROSS * PITCH_UP + i % ACROSS * STEP;
        if (STEP == 8) cp_async_16(to, w.up + STEP * i, true);
        else cp_async_8(to, w.up + STEP * i, true);
      }
    }
  }
  if (WHICH == PHASES - 1 && unit < UNITS2) {
    const int split = unit % SPLITS, columns = unit / SPLITS % (C / COLS2);
    copy_rows<2 * DEPTH2>((T*)(smem + AT_SECOND), w.second + (i64)columns * COLS2 * N + split * DEPTH2, COLS2, COLS2, N,
                          PITCH2);
    copy_vector(AT_GAMMA, w.gamma + split * DEPTH2, w.conv, DEPTH2);
    copy_vector(AT_SECOND_BIAS, w.second_bias ? w.second_bias + columns * COLS2 : nullptr, w.conv, COLS2);
  }
}

// ---- Mix
// Eight channels of a cell of a block's input: of the first block's the map itself, else the sum of the parts, rounded.
__device__ __forceinline__ uint4 input_of(const T* x, const float* parts, int block, int cell, int channel) {
  const i64 at = (i64)cell * C + channel;
  if (block == 0) return __ldg((const uint4*)(x + at));
  Eight sum = {};
#pragma unroll
  for (int s = 0; s < SPLITS; s++) {
    const float4 a = __ldcg((const float4*)(parts + (i64)s * CELLS_ALL * C + at)),
                 b = __ldcg((const float4*)(parts + (i64)s * CELLS_ALL * C + at) + 1);
    sum.v[0] += a.x, sum.v[1] += a.y, sum.v[2] += a.z, sum.v[3] += a.w, sum.v[4] += b.x, sum.v[5] += b.y,
        sum.v[6] += b.z, sum.v[7] += b.w;
  }
  return narrowed(sum);
}

template <int K>
__device__ __forceinline__ void mix(const Chain& chain, u64 large, int phase, const T* x, const float* parts,
                                    T* carried, T* mixed, float* squeezed) {
  const int block = phase / PHASES;
  constexpr int REACH = K / 2, PITCH = plane_pitch(K), PLANE = plane_size(K), ROWS = plane_rows(K),
                SHARED_LINES = shares(K) * LINES;
  const int unit = blockIdx.x, channel0 = unit % GROUPS * 8, strip = unit / GROUPS % STRIPS,
            map = unit / (GROUPS * STRIPS), row0 = strip * STRIP;
  float* planes = (float*)(smem + AT_OWN);
  float* taps = planes + 8 * PLANE;
  float* lines = taps + 8 * taps_size(K);
  float* small = (float*)(smem + AT_SMALL);
  if (unit < MIX_UNITS) {
    constexpr int SEEN = smaller(H, ROWS) * W, EACH = cover(SEEN, THREADS);
    const int first = max(row0 - REACH, 0), seen = (min(row0 + STRIP + REACH, H) - first) * W;
    uint4 raw[EACH];
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int i = threadIdx.x + j * THREADS;
      raw[j] = make_uint4(0, 0, 0, 0);
      if (i < seen) raw[j] = input_of(x, parts, block, map * CELLS + first * W + i, channel0);
    }
    prefetch<1>(chain, large, block);                   // while the map is on its way
    cp_async_commit();
    for (int i = threadIdx.x; i < 2 * PLANE; i += THREADS) ((float4*)planes)[i] = make_float4(0.f, 0.f, 0.f, 0.f);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int i = threadIdx.x + j * THREADS, row = first + i / W, col = i % W;
      if (i >= seen) break;
      if (block > 0 && row >= row0 && row < row0 + STRIP)
        *(uint4*)(carried + ((i64)map * CELLS + row * W + col) * C + channel0) = raw[j];
      const Eight value = widened(raw[j]);
#pragma unroll
      for (int e = 0; e < 8; e++) planes[e * PLANE + (row - row0 + REACH) * PITCH + col + REACH] = value.v[e];
    }
    cp_async_wait<1>();
  } else {
    prefetch<1>(chain, large, block);
    cp_async_commit();
  }
  __syncthreads();
  if (unit < MIX_UNITS) {
    const T* raw = (const T*)(smem + AT_TAPS);
    for (int i = threadIdx.x; i < 8 * K * K; i += THREADS)
      taps[i / (K * K) * taps_size(K) + i / K % K * taps_pitch(K) + i % K] = to_float(raw[i]);
  }
  __syncthreads();
  const int lane = threadIdx.x % 8;                      // its channel
  if (unit < MIX_UNITS) {
    for (int item = threadIdx.x / 8; item < SHARED_LINES; item += THREADS / 8) {
      const int line = item % LINES, share = item / LINES, row = line / TILES_W, col = line % TILES_W * TILE;
      // Other rows of the kernel see only padding.
      const int begin = max(share * K / shares(K), REACH - row0 - row),
                end = min((share + 1) * K / shares(K), H + REACH - row0 - row);
      float acc[TILE];
      convolve<K, TILE, PITCH, taps_pitch(K)>(acc, planes + lane * PLANE + row * PITCH + col,
                                              taps + lane * taps_size(K), begin, end);
      float* to = lines + item * LINE_PITCH + lane;
#pragma unroll
      for (int j = 0; j < TILE; j++) to[8 * j] = acc[j];
    }
  }
  __syncthreads();
  if (unit < MIX_UNITS) {
    for (int i = threadIdx.x; i < STRIP * W; i += THREADS) {
      const int row = i / W, col = i % W;
      float* line = lines + (row * TILES_W + col / TILE) * LINE_PITCH + col % TILE * 8;
      Eight sum;
      sum = widened(*(const uint4*)(smem + AT_CONV_BIAS));
#pragma unroll
      for (int share = 0; share < shares(K); share++)
#pragma unroll
        for (int q = 0; q < 2; q++) {
          const float4 a = ((const float4*)(line + share * LINES * LINE_PITCH))[q];
          sum.v[4 * q] += a.x, sum.v[4 * q + 1] += a.y, sum.v[4 * q + 2] += a.z, sum.v[4 * q + 3] += a.w;
        }
      uint4 rounded = narrowed(sum);
      if (row0 + row < H) *(uint4*)(mixed + ((i64)map * CELLS + (row0 + row) * W + col) * C + channel0) = rounded;
      else rounded = make_uint4(0, 0, 0, 0);
      const Eight kept = widened(rounded);
      ((float4*)line)[0] = make_float4(kept.v[0], kept.v[1], kept.v[2], kept.v[3]);
      ((float4*)line)[1] = make_float4(kept.v[4], kept.v[5], kept.v[6], kept.v[7]);
    }
  }
  __syncthreads();
  float total = 0.f;
  if (unit < MIX_UNITS) {
    for (int i = threadIdx.x / 8; i < STRIP * W; i += THREADS / 8)
      total += lines[(i / W * TILES_W + i % W / TILE) * LINE_PITCH + i % W % TILE * 8 + lane];
  }
  total += shfl_xor(total, 8);
  total += shfl_xor(total, 16);
  if (threadIdx.x % 32 < 8) small[threadIdx.x / 32 * 8 + lane] = total;
  __syncthreads();
  // this strip's and these channels' share in squeeze-excite's first layer
  if (unit < MIX_UNITS && threadIdx.x < R) {
    const Eight weight = widened(*(const uint4*)(smem + AT_DOWN + 16 * threadIdx.x));
    float share = 0.f;
#pragma unroll
    for (int e = 0; e < 8; e++) {
      float mean = 0.f;
#pragma unroll
      for (int i = 0; i < WARPS; i++) mean += small[8 * i + e];
      share += weight.v[e] * (mean * (1.f / CELLS));
    }
    squeezed[(i64)unit * R + threadIdx.x] = share;
  }
}

// ---- Squeeze-excite
// Its first layer's outputs, [R], from the shares of all units of that map; `meanwhile` runs while these are on their
// way, and leaves two groups of copies after those that the layer needs.
template <class Meanwhile>
__device__ __forceinline__ float* squeeze(const float* squeezed, int map, const Meanwhile& meanwhile) {
  constexpr int ACROSS = R / 4, PARTS = THREADS / ACROSS, UNITS = GROUPS * STRIPS, EACH = cover(UNITS, PARTS);
  float* shares = (float*)(smem + AT_SMALL) + larger(C, DEPTH2) + 64;  // [PARTS][R], then the result in the first part
  const int part = threadIdx.x / ACROSS, at = threadIdx.x % ACROSS * 4;
  const float* from = squeezed + (i64)map * UNITS * R + at;
  float4 share[EACH];                                    // all on their way at once
#pragma unroll
  for (int j = 0; j < EACH; j++)
    share[j] = part < PARTS && part + j * PARTS < UNITS ? __ldcg((const float4*)(from + (i64)(part + j * PARTS) * R))
                                                        : make_float4(0.f, 0.f, 0.f, 0.f);
  meanwhile();
  cp_async_wait<2>();
  if (part < PARTS) {
#pragma unroll
    for (int j = 1; j < EACH; j++)
      share[0].x += share[j].x, share[0].y += share[j].y, share[0].z += share[j].z, share[0].w += share[j].w;
    *(float4*)(shares + part * R + at) = share[0];
  }
  __syncthreads();
  float sum = 0.f;
  if (threadIdx.x < R) {
    sum = to_float(((const T*)(smem + AT_DOWN_BIAS))[threadIdx.x]);
#pragma unroll
    for (int p = 0; p < PARTS; p++) sum += shares[p * R + threadIdx.x];
  }
  __syncthreads();
  if (threadIdx.x < R) shares[threadIdx.x] = fmaxf(sum, 0.f);
  __syncthreads();
  return shares;
}

// A phase of its own where the second layer's weights are many: a warp a channel.
__device__ __forceinline__ void gate_phase(const Chain& chain, u64 large, int phase, const float* squeezed,
                                           float* gates) {
  const Weights& w = chain.blocks[phase / PHASES];
  constexpr int EACH = cover(R, 128);
  const int lane = threadIdx.x % 32;
  for (int map = 0; map < MAPS; map++) {
    uint2 up[EACH];
    const int own = blockIdx.x * WARPS + threadIdx.x / 32;
#pragma unroll
    for (int j = 0; j < EACH; j++)
      up[j] = own < C && 4 * lane + 128 * j < R ? __ldg((const uint2*)(w.up + (i64)own * R + 4 * lane + 128 * j))
                                                : make_uint2(0, 0);
    const float* hidden = squeeze(squeezed, map, [&] {
      cp_async_commit();
      if (map == 0) prefetch<PHASES - 2>(chain, large, phase / PHASES);
      cp_async_commit();
    });
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int r = 4 * lane + 128 * j;
      if (r < R)
        sum += lo_float<T>(up[j].x) * hidden[r] + hi_float<T>(up[j].x) * hidden[r + 1] +
               lo_float<T>(up[j].y) * hidden[r + 2] + hi_float<T>(up[j].y) * hidden[r + 3];
    }
#pragma unroll
    for (int mask = 16; mask; mask /= 2) sum += shfl_xor(sum, mask);
    if (lane == 0 && own < C) gates[map * C + own] = sigmoid(sum + to_float(((const T*)(smem + AT_UP_BIAS))[own]));
    __syncthreads();
  }
}

// The gate of one map, [C] in shared memory.
template <class Meanwhile>
__device__ __forceinline__ const float* gate_of(const float* squeezed, const float* gates, int map,
                                                const Meanwhile& meanwhile) {
  float* gate = (float*)(smem + AT_SMALL);
  if (GATE) {
    meanwhile();
    for (int c = 4 * threadIdx.x; c < C; c += 4 * THREADS)
      *(float4*)(gate + c) = __ldcg((const float4*)(gates + map * C + c));
  } else {
    float* hidden = squeeze(squeezed, map, meanwhile);
    // On the tensor cores, each value as the sum of two: columns of even number hold the
    // first, the others what it lacks.
    T* halves = (T*)(hidden + R);                        // [2][DEEP_R]
    for (int r = threadIdx.x; r < DEEP_R; r += THREADS) {
      const float value = r < R ? hidden[r] : 0.f;
      halves[r] = from_float<T>(value);
      halves[DEEP_R + r] = from_float<T>(value - to_float(halves[r]));
    }
    __syncthreads();
    const T *up = (const T*)(smem + AT_UP), *bias = (const T*)(smem + AT_UP_BIAS);
    const int lane = threadIdx.x % 32;
    const u32* half = (const u32*)(halves + lane / 4 % 2 * DEEP_R) + lane % 4;
    for (int high = threadIdx.x / 32; high < C / 16; high += WARPS) {
      float acc[4] = {};
#pragma unroll
      for (int k = 0; k < DEEP_R; k += 16) {
        u32 a[4];
        ldmatrix_x4(a, up + (16 * high + lane % 16) * PITCH_UP + k + lane / 16 * 8);
        mma_16816<T>(acc, a, half[k / 2], half[k / 2 + 4]);
      }
      if (lane % 4 == 0) {
        const int c = 16 * high + lane / 4;
        gate[c] = sigmoid(acc[0] + acc[1] + to_float(bias[c]));
        gate[c + 8] = sigmoid(acc[2] + acc[3] + to_float(bias[c + 8]));
      }
    }
  }
  __syncthreads();
  return gate;
}

// ---- Products
__device__ __forceinline__ void expand(const Chain& chain, u64 large, const T* mixed, const float* squeezed,
                                       const float* gates, T* hidden, float* squares, int phase) {
  const int unit = blockIdx.x, column0 = unit % (N / COLS1) * COLS1, tile = unit / (N / COLS1), map = tile / TILES1,
            row0 = tile % TILES1 * ROWS1, rows = min(ROWS1, CELLS - row0);
  T* a = (T*)(smem + AT_OWN);
  T* b = (T*)(smem + AT_FIRST);
  float* sums = (float*)(smem + AT_OWN + aligned(HIGH1 * PITCH1 * 2));
  float* small = (float*)(smem + AT_SMALL);
  if (unit < UNITS1) copy_rows<2 * C>(a, mixed + ((i64)map * CELLS + row0) * C, HIGH1, rows, C, PITCH1);
  cp_async_commit();
  const auto meanwhile = [&] {
    prefetch<PHASES - 1>(chain, large, phase / PHASES);
    cp_async_commit();
  };
  if (unit < UNITS1) {
    const float* gate = gate_of(squeezed, gates, map, meanwhile);
    cp_async_wait<1>();
    __syncthreads();
    if (HIGH1 < COLS1) scale<HIGH1, C, PITCH1>(a, gate);
    else scale<COLS1, C, PITCH1>(b, gate);
    __syncthreads();
    multiply<HIGH1, COLS1, C, PITCH1, SHARES1>(sums, a, b);
  }
  if (unit >= UNITS1) {
    meanwhile();
    return;
  }
  __syncthreads();
  constexpr int ACROSS = COLS1 / 8, DOWN = THREADS / ACROSS, PARTS = smaller(THREADS / COLS1, DOWN);
  const int across = threadIdx.x % ACROSS, down = threadIdx.x / ACROSS;
  float* seen = (float*)(smem + AT_OWN);                 // [DOWN][COLS1]: the rows are no longer needed
  Eight square = {};
  if (down < DOWN) {
    const Eight bias = widened(*(const uint4*)(smem + AT_FIRST_BIAS + 16 * across));
    for (int row = down; row < rows; row += DOWN) {
      Eight value = sum_of<HIGH1, COLS1, SHARES1>(sums, row, 8 * across);
#pragma unroll
      for (int e = 0; e < 8; e++) {
        value.v[e] = gelu(value.v[e] + bias.v[e]);
        square.v[e] += value.v[e] * value.v[e];
      }
      *(uint4*)(hidden + ((i64)map * CELLS + row0 + row) * N + column0 + 8 * across) = narrowed(value);
    }
  }
  __syncthreads();
  if (down < DOWN) {
#pragma unroll
    for (int e = 0; e < 8; e++) seen[down * COLS1 + 8 * across + e] = square.v[e];
  }
  __syncthreads();
  const int column = threadIdx.x % COLS1, part = threadIdx.x / COLS1;
  if (part < PARTS) {
    float sum = 0.f;
    for (int d = part; d < DOWN; d += PARTS) sum += seen[d * COLS1 + column];
    small[part * COLS1 + column] = sum;
  }
  __syncthreads();
  if (threadIdx.x < COLS1) {
    float sum = 0.f;
#pragma unroll
    for (int p = 0; p < PARTS; p++) sum += small[p * COLS1 + threadIdx.x];
    squares[(i64)tile * N + column0 + threadIdx.x] = sum;
  }
}

// GRN's factors for columns `from` to `from + DEPTH2` of the hidden map, in shared memory.
template <class Meanwhile>
__device__ __forceinline__ const float* factors(const float* squares, int map, int from, const Meanwhile& meanwhile) {
  float* factor = (float*)(smem + AT_SMALL);
  float* totals = factor + larger(C, DEPTH2);
  constexpr int ACROSS = N / 4, PARTS = larger(1, THREADS / ACROSS), ROUNDS = cover(ACROSS, THREADS),
                EACH = cover(TILES1, PARTS);
  const int part = PARTS > 1 ? threadIdx.x / ACROSS : 0, at = PARTS > 1 ? threadIdx.x % ACROSS : threadIdx.x;
  float4 sum[ROUNDS] = {}, share[ROUNDS][EACH];          // all on their way at once
#pragma unroll
  for (int round = 0; round < ROUNDS; round++)
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int t = part + j * PARTS, vector = at + round * THREADS;
      share[round][j] = t < TILES1 && vector < ACROSS
                            ? __ldcg((const float4*)(squares + ((i64)map * TILES1 + t) * N) + vector)
                            : make_float4(0.f, 0.f, 0.f, 0.f);
    }
  meanwhile();
#pragma unroll
  for (int round = 0; round < ROUNDS; round++)
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const float4 a = share[round][j];
      sum[round].x += a.x, sum[round].y += a.y, sum[round].z += a.z, sum[round].w += a.w;
    }
  if (PARTS > 1) {                                       // few columns: threads share their tiles
    float4* shares = (float4*)(totals + 64);
    if (part < PARTS) shares[part * ACROSS + at] = sum[0];
    __syncthreads();
    if (part == 0)
#pragma unroll
      for (int p = 1; p < PARTS; p++) {
        const float4 a = shares[p * ACROSS + at];
        sum[0].x += a.x, sum[0].y += a.y, sum[0].z += a.z, sum[0].w += a.w;
      }
  }
  float total = 0.f;
#pragma unroll
  for (int round = 0; round < ROUNDS; round++) {
    const int n = 4 * (at + round * THREADS);
    if (part != 0 || n >= N) continue;
    const float4 norm = make_float4(sqrtf(sum[round].x), sqrtf(sum[round].y), sqrtf(sum[round].z), sqrtf(sum[round].w));
    total += (norm.x + norm.y) + (norm.z + norm.w);
    if (n >= from && n < from + DEPTH2) *(float4*)(factor + n - from) = norm;
  }
#pragma unroll
  for (int mask = 16; mask; mask /= 2) total += shfl_xor(total, mask);
  if (threadIdx.x % 32 == 0) totals[threadIdx.x / 32] = total;
  cp_async_wait<2>();                                    // gamma
  __syncthreads();
  float mean = 0.f;
#pragma unroll
  for (int i = 0; i < WARPS; i++) mean += totals[i];
  const float scale = 1.f / (mean * (1.f / N) + 1e-6f);
  for (int k = threadIdx.x; k < DEPTH2; k += THREADS)
    factor[k] = to_float(((const T*)(smem + AT_GAMMA))[k]) * factor[k] * scale + 1.f;
  __syncthreads();
  return factor;
}

__device__ __forceinline__ void contract(const Chain& chain, u64 large, const T* carried, const T* hidden,
                                         const float* squares, float* parts, int phase) {
  const int unit = blockIdx.x, split = unit % SPLITS, column0 = unit / SPLITS % (C / COLS2) * COLS2,
            tile = unit / (SPLITS * (C / COLS2));
  const int map = tile / TILES2, row0 = tile % TILES2 * ROWS2, rows = min(ROWS2, CELLS - row0);
  const i64 cell0 = (i64)map * CELLS + row0;
  T* a = (T*)(smem + AT_OWN);
  T* b = (T*)(smem + AT_SECOND);
  T* residuals = (T*)(smem + AT_OWN + aligned(HIGH2 * PITCH2 * 2));
  float* sums = (float*)(smem + AT_OWN + aligned(HIGH2 * PITCH2 * 2) + aligned(HIGH2 * COLS2 * 2));
  if (unit < UNITS2) {
    copy_rows<2 * DEPTH2>(a, hidden + cell0 * N + split * DEPTH2, HIGH2, rows, N, PITCH2);
    if (split == 0) copy_rows<2 * COLS2>(residuals, carried + cell0 * C + column0, rows, rows, C, COLS2);
  }
  cp_async_commit();
  const auto meanwhile = [&] {
    prefetch<0>(chain, large, phase / PHASES + 1);
    cp_async_commit();
  };
  if (unit < UNITS2) {
    const float* factor = factors(squares, map, split * DEPTH2, meanwhile);
    cp_async_wait<1>();
    __syncthreads();
    if (HIGH2 < COLS2) scale<HIGH2, DEPTH2, PITCH2>(a, factor);
    else scale<COLS2, DEPTH2, PITCH2>(b, factor);
    __syncthreads();
    multiply<HIGH2, COLS2, DEPTH2, PITCH2, SHARES2>(sums, a, b);
  }
  if (unit >= UNITS2) {
    meanwhile();
    return;
  }
  __syncthreads();
  constexpr int ACROSS = COLS2 / 8;
  for (int i = threadIdx.x; i < rows * ACROSS; i += THREADS) {
    const int row = i / ACROSS, column = column0 + i % ACROSS * 8;
    Eight value = sum_of<HIGH2, COLS2, SHARES2>(sums, row, i % ACROSS * 8);
    const i64 at = (cell0 + row) * C + column;
    if (split == 0) {
      const Eight residual = widened(*(const uint4*)(residuals + row * COLS2 + i % ACROSS * 8)),
                  bias = widened(*(const uint4*)(smem + AT_SECOND_BIAS + i % ACROSS * 16));
#pragma unroll
      for (int e = 0; e < 8; e++) value.v[e] += residual.v[e] + bias.v[e];
    }
    float4* to = (float4*)(parts + (i64)split * CELLS_ALL * C + at);
    to[0] = make_float4(value.v[0], value.v[1], value.v[2], value.v[3]);
    to[1] = make_float4(value.v[4], value.v[5], value.v[6], value.v[7]);
  }
}

// Phases `begin` to `end` of PHASES a block and one that sums up the last parts. `arrived` is 0
// before the launch and after it.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    run_blocks(const T* __restrict__ x, const __grid_constant__ Chain chain, u64 large, T* carried, T* mixed,
               float* squeezed, float* gates, T* hidden, float* squares, float* parts, T* out, u32* arrived, int begin,
               int end) {
  overlap_launches();
  if (!GATE)
    for (int i = threadIdx.x; i < C * (PITCH_UP / 4); i += THREADS) *(uint2*)(smem + AT_UP + 8 * i) = make_uint2(0, 0);
  __syncthreads();
  switch (begin % PHASES) {
    case 0: prefetch<0>(chain, large, begin / PHASES); break;
    case 1: prefetch<1>(chain, large, begin / PHASES); break;
    case 2: prefetch<2>(chain, large, begin / PHASES); break;
    default: prefetch<3>(chain, large, begin / PHASES);
  }
  cp_async_commit();
  for (int phase = begin; phase < end; phase++) {
    const int block = phase / PHASES, which = phase % PHASES;
    const T* before = block == 0 ? x : carried;
    if (block == BLOCKS) {
      for (int i = blockIdx.x * THREADS + threadIdx.x; i < CELLS_ALL * (C / 8); i += gridDim.x * THREADS)
        *(uint4*)(out + 8 * (i64)i) = input_of(x, parts, block, i / (C / 8), i % (C / 8) * 8);
    } else {
      if (which == 0) {
        if (is_large(large, block)) mix<LARGE>(chain, large, phase, x, parts, carried, mixed, squeezed);
        else mix<SMALL>(chain, large, phase, x, parts, carried, mixed, squeezed);
      } else if (GATE && which == 1) {
        gate_phase(chain, large, phase, squeezed, gates);
      } else if (which == PHASES - 2) {
        expand(chain, large, mixed, squeezed, gates, hidden, squares, phase);
      } else {
        contract(chain, large, before, hidden, squares, parts, phase);
      }
    }
    if (phase + 1 == end) break;
    grid_arrive(arrived);
    grid_wait(arrived, (u32)(phase + 1 - begin) * gridDim.x);
  }
  if (end - begin > 1) grid_leave(arrived, (u32)(end - begin - 1) * gridDim.x);
}
