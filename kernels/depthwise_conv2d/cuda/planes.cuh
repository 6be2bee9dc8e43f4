// Between device memory and shared memory: a block's channels as zero-padded planes, whatever the layout outside.
//
// A block works on CB channels and S strips; a strip is TH output rows by 8 NT output columns of one image. Small maps
// put several images into a block (S > 1), large maps are cut into strips. All of this is fixed at compile time except
// the size of the map, so that one compiled kernel serves every size.
//
// Defined at compile time: T (element type), CB, S, TH, NT, KH, KW, DIL, SIDE, PAD_ROWS_MODE, PAD_COLS_MODE, IN_CL,
// OUT_CL, VEC (elements in one copy of a contiguous map).

constexpr int REACH_ROWS = KH / 2 * DIL;                 // how far a kernel sees beyond its own cell
constexpr int REACH_COLS = KW / 2 * DIL;
constexpr int LB = (REACH_COLS + 7) / 8;                 // the same in blocks of eight columns
constexpr int THREADS = 32 * WARPS;

enum { ZERO = 0, CIRCULAR = 1, MIRROR_CELLS = 2, MIRROR_POLES = 3 };  // what lies beyond the edge of the map

struct Map { int n, c, h, w; };                          // sizes of the whole input

__device__ __forceinline__ int modulo(int a, int n) {
  int r = a % n;
  return r < 0 ? r + n : r;
}

// The cell of the map that stands at (row, col), which may lie beyond the edge; false: zero stands there.
template <int ROWS_MODE, int COLS_MODE> __device__ __forceinline__ bool locate(int& row, int& col, const Map& map) {
  if (ROWS_MODE == CIRCULAR) row = modulo(row, map.h);
  if (ROWS_MODE == MIRROR_CELLS || ROWS_MODE == MIRROR_POLES) {
    // Beyond a pole lies the opposite meridian. A grid with pole rows does not repeat them.
    const int repeated = ROWS_MODE == MIRROR_POLES, period = max(2 * map.h - 2 * repeated, 1);
    if (row < 0 || row >= map.h) {
      row = modulo(row, period);
      if (row >= map.h) {
        row = period - 1 + repeated - row;
        col += map.w / 2;
      }
    }
  }
  if (COLS_MODE == CIRCULAR) col = modulo(col, map.w);
  return row >= 0 && row < map.h && col >= 0 && col < map.w;
}

struct Strip { int image, row; };                        // and its first output row

__device__ __forceinline__ Strip strip_of(int q, int per_image) {
  if (per_image == 1) return {q, 0};                     // the common case without a division
  return {q / per_image, q % per_image * TH};
}

// What there is to do for each group of CB channels: strips, S at a time, by tiles of columns.
struct Jobs { int groups, tiles, per_image, count; };

__device__ __forceinline__ Jobs jobs_of(const Map& map) {
  const int tiles = (map.w + 8 * NT - 1) / (8 * NT), per_image = (map.h + TH - 1) / TH;
  return {(map.c + CB - 1) / CB, tiles, per_image, (map.n * per_image + S - 1) / S * tiles};
}

#ifdef WEIGHT_GRADIENT
// What a warp sums: KC kernel rows from kh0 on, `rows` of which exist, of one channel of its block,
// for its `split` of the jobs.
struct Share { int channel0, channel, chunk, split, kh0, rows; };

__device__ __forceinline__ Share share_of(const Map& map, const Jobs& jobs) {
  constexpr int CHUNKS = (KH + KC * KSPLIT - 1) / (KC * KSPLIT);
  const int warp = threadIdx.x / 32, channel0 = blockIdx.x % jobs.groups * CB,
            chunk = blockIdx.x / jobs.groups % CHUNKS;
  const int channel = warp / KSPLIT, kh0 = chunk * KC * KSPLIT + warp % KSPLIT * KC;
  return {channel0, channel,
          chunk,    (int)(blockIdx.x / jobs.groups / CHUNKS),
          kh0,      channel0 + channel < map.c ? min(KC, KH - kh0) : 0};
}

// Where a warp's sums go: partial[split][c][KH][KW].
__device__ __forceinline__ float* place_of(float* partial, const Share& mine, const Map& map) {
  return partial + ((i64)mine.split * map.c + mine.channel0 + mine.channel) * (KH * KW) + mine.kh0 * KW;
}
#endif

// Fill ROWS rows and COLS columns of each strip in planes[channel][row][PITCH], from column `col0` and from `row0`
// after the strip's first row; the strips stand STRIDE rows apart, the first at row OFFSET.
//
// From channels-last memory a lane takes eight channels of two neighbouring columns; lanes that lie side by
// side take the other channels of the block, so that a warp reads whole sectors. `fetch` only starts the
// loads, `commit` writes them.
template <int ROWS, int STRIDE, int OFFSET, int COLS, int PITCH, int PLANE, int ROWS_MODE, int COLS_MODE>
struct Loader {
  static __device__ __forceinline__ int place(int line) {
    return (line / ROWS * STRIDE + line % ROWS + OFFSET) * PITCH;
  }

#if IN_CL
#if ELEMENT_BYTES == 2
  static constexpr int PARTS = CB / 8, ACROSS = COLS / 2, VECTORS = 2, ATOM = 8;
#else
  static constexpr int PARTS = CB / 4, ACROSS = COLS, VECTORS = 1, ATOM = 4;
#endif
  static constexpr int TOTAL = S * ROWS * ACROSS * PARTS, UNITS = (TOTAL + THREADS - 1) / THREADS;
  static constexpr int BATCH = UNITS < MAX_PREFETCH ? UNITS : MAX_PREFETCH;
  static constexpr bool AHEAD = UNITS <= MAX_PREFETCH;   // all of a job fits into registers
  uint4 held[BATCH][VECTORS];

  __device__ __forceinline__ void fetch(const T* __restrict__ x, int first_strip, int per_image, const Map& map,
                                        int channel0, int row0, int col0, int batch = 0) {
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      const int u = threadIdx.x + (batch + i) * THREADS, part = u % PARTS, line = u / (PARTS * ACROSS),
                channel = channel0 + ATOM * part;
      const Strip strip = strip_of(first_strip + line / ROWS, per_image);
#pragma unroll
      for (int k = 0; k < VECTORS; k++) {
        int row = strip.row + line % ROWS + row0, col = col0 + VECTORS * (u / PARTS % ACROSS) + k;
        const bool there =
            u < TOTAL && strip.image < map.n && channel < map.c && locate<ROWS_MODE, COLS_MODE>(row, col, map);
        held[i][k] = there
                         ? __ldg((const uint4*)(x + (((i64)strip.image * map.h + row) * map.w + col) * map.c + channel))
                         : make_uint4(0, 0, 0, 0);
      }
    }
  }

  __device__ __forceinline__ void commit(T* planes, int batch = 0) const {
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      const int u = threadIdx.x + (batch + i) * THREADS, part = u % PARTS, line = u / (PARTS * ACROSS);
      if (u >= TOTAL) break;
      u32* to = (u32*)(planes + ATOM * part * PLANE + place(line) + VECTORS * (u / PARTS % ACROSS));
      const u32 a[4] = {held[i][0].x, held[i][0].y, held[i][0].z, held[i][0].w};
#if ELEMENT_BYTES == 2
      const u32 b[4] = {held[i][VECTORS - 1].x, held[i][VECTORS - 1].y, held[i][VECTORS - 1].z, held[i][VECTORS - 1].w};
#pragma unroll
      // a word holds two channels of one column; a plane needs two columns of one channel
      for (int e = 0; e < 4; e++) {
        to[(2 * e) * (PLANE / 2)] = prmt(a[e], b[e], 0x5410);
        to[(2 * e + 1) * (PLANE / 2)] = prmt(a[e], b[e], 0x7632);
      }
#else
#pragma unroll
      for (int e = 0; e < 4; e++) to[e * PLANE] = a[e];
#endif
    }
  }

  __device__ __forceinline__ void load(T* planes, const T* __restrict__ x, int first_strip, int per_image,
                                       const Map& map, int channel0, int row0, int col0) {
#pragma unroll 1
    for (int batch = 0; batch < UNITS; batch += BATCH) {
      fetch(x, first_strip, per_image, map, channel0, row0, col0, batch);
      commit(planes, batch);
    }
  }
#else
  static constexpr bool AHEAD = false;                   // the copies run by themselves
  __device__ __forceinline__ void fetch(const T*, i64, int, const Map&, int, int, int) {}
  __device__ __forceinline__ void commit(T*) const {}

  __device__ __forceinline__ void load(T* planes, const T* __restrict__ x, int first_strip, int per_image,
                                       const Map& map, int channel0, int row0, int col0) {
    constexpr int COPIES = COLS / VEC;
    for (int u = threadIdx.x; u < CB * S * ROWS * COPIES; u += THREADS) {
      const int copy = u % COPIES, line = u / COPIES % (S * ROWS), channel = u / (COPIES * S * ROWS);
      const Strip strip = strip_of(first_strip + line / ROWS, per_image);
      int row = strip.row + line % ROWS + row0, col = col0 + VEC * copy;
      const bool there =
          strip.image < map.n && channel0 + channel < map.c && locate<ROWS_MODE, COLS_MODE>(row, col, map);
      const T* from = there ? x + (((i64)strip.image * map.c + channel0 + channel) * map.h + row) * map.w + col : x;
      T* to = planes + channel * PLANE + place(line) + VEC * copy;
      if constexpr (VEC * ELEMENT_BYTES == 16) cp_async_16(to, from, there);
      else if constexpr (VEC * ELEMENT_BYTES == 8) cp_async_8(to, from, there);
      else if constexpr (VEC * ELEMENT_BYTES == 4) cp_async_4(to, from, there);
      else *to = there ? *from : T{};
    }
  }
#endif
};

template <int BYTES> __device__ __forceinline__ void clear(void* from) {
  for (int i = threadIdx.x; i < BYTES / 16; i += THREADS) ((uint4*)from)[i] = make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ void planes_loaded() {
#if !IN_CL
  cp_async_commit();
  cp_async_wait<0>();
#endif
  __syncthreads();
}

// Write the outputs that stand in planes[channel][row][PITCH], TH rows of each strip, columns from 0.
template <int STRIDE, int OFFSET, int PITCH, int PLANE>
__device__ __forceinline__ void store_planes(T* __restrict__ y, const T* planes, int first_strip, int per_image,
                                             const Map& map, int channel0, int col0) {
  constexpr int COLS = 8 * NT;
#if OUT_CL
#if ELEMENT_BYTES == 2
  constexpr int PARTS = CB / 8, ACROSS = COLS / 2, VECTORS = 2, ATOM = 8;
#else
  constexpr int PARTS = CB / 4, ACROSS = COLS, VECTORS = 1, ATOM = 4;
#endif
  for (int u = threadIdx.x; u < S * TH * ACROSS * PARTS; u += THREADS) {
    const int part = u % PARTS, line = u / (PARTS * ACROSS), channel = channel0 + ATOM * part,
              col = col0 + VECTORS * (u / PARTS % ACROSS);
    const Strip strip = strip_of(first_strip + line / TH, per_image);
    const int row = strip.row + line % TH;
    if (strip.image >= map.n || row >= map.h || col >= map.w || channel >= map.c) continue;
    const u32* from =
        (const u32*)(planes + ATOM * part * PLANE + (line / TH * STRIDE + line % TH + OFFSET) * PITCH + col - col0);
    T* to = y + (((i64)strip.image * map.h + row) * map.w + col) * map.c + channel;
    u32 a[4], b[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
#if ELEMENT_BYTES == 2
      const u32 even = from[(2 * e) * (PLANE / 2)], odd = from[(2 * e + 1) * (PLANE / 2)];
      a[e] = prmt(even, odd, 0x5410);
      b[e] = prmt(even, odd, 0x7632);
#else
      a[e] = b[e] = from[e * PLANE];
#endif
    }
    *(uint4*)to = make_uint4(a[0], a[1], a[2], a[3]);
    if (VECTORS == 2 && col + 1 < map.w) *(uint4*)(to + map.c) = make_uint4(b[0], b[1], b[2], b[3]);
  }
#else
  constexpr int COPIES = COLS / VEC;
  for (int u = threadIdx.x; u < CB * S * TH * COPIES; u += THREADS) {
    const int copy = u % COPIES, line = u / COPIES, h = line % TH, s = line / TH % S, channel = line / (TH * S);
    const Strip strip = strip_of(first_strip + s, per_image);
    const int row = strip.row + h, col = col0 + VEC * copy;
    if (strip.image >= map.n || channel0 + channel >= map.c || row >= map.h || col >= map.w) continue;
    const T* from = planes + channel * PLANE + (s * STRIDE + h + OFFSET) * PITCH + VEC * copy;
    T* to = y + (((i64)strip.image * map.c + channel0 + channel) * map.h + row) * map.w + col;
    if constexpr (VEC * ELEMENT_BYTES == 16) *(uint4*)to = *(const uint4*)from;
    else if constexpr (VEC * ELEMENT_BYTES == 8) *(uint2*)to = *(const uint2*)from;
    else if constexpr (VEC * ELEMENT_BYTES == 4) *(u32*)to = *(const u32*)from;
    else *to = *from;
  }
#endif
}

// Sum of each strip's outputs of the warp's channel, as squeeze-excite needs them: sums[column tile and strip
// of the image][image][channel].
template <int STRIDE, int OFFSET, int PITCH>
__device__ __forceinline__ void sum_plane(float* sums, const T* plane, int first_strip, int per_image, const Map& map,
                                          int channel, int col0, int tile) {
  const int lane = threadIdx.x % 32;
  for (int s = 0; s < S; s++) {
    const Strip strip = strip_of(first_strip + s, per_image);
    if (strip.image >= map.n) break;
    float sum = 0.f;
    for (int i = lane; i < TH * 8 * NT; i += 32) {
      const int h = i / (8 * NT), col = i % (8 * NT);
      if (strip.row + h < map.h && col0 + col < map.w) sum += to_float(plane[(s * STRIDE + h + OFFSET) * PITCH + col]);
    }
#pragma unroll
    for (int mask = 16; mask; mask /= 2) sum += shfl_xor(sum, mask);
    if (lane == 0) sums[(((i64)tile * per_image + strip.row / TH) * map.n + strip.image) * map.c + channel] = sum;
  }
}
