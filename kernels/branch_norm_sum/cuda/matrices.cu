// The gradient of small maps through branches and their norms, as products of matrices. A branch is z = W x with a
// matrix W of a map's cells, what comes back to it is along * gy + own * z + constant, and what comes back to the map
// is W^T of that; so the gradient of the map is
//
//     (sum of along W)^T gy + (sum of own W^T W) x + (sum of constant W^T 1),
//
// two matrices of cells by cells a channel, whose columns are images, and a vector. The first of them depends on
// how far cells lie from each other alone, and the second is symmetric. `make_matrices` makes them,
// `input_gradient` multiplies.
//
// A matrix is pieces of 16 by 16: cells of one row of the map, or of two where it is up to eight columns wide ("line"
// below). A piece lies in memory as the tensor cores take it, four words a lane.
//
// Defined at compile time, besides what terms.cuh needs: HEIGHT, WIDTH, up to 16; THREADS; CB, channels of a block;
// MIN_BLOCKS; AHEAD, pieces on their way.

// of a line; lines of a map
constexpr int COLUMNS = WIDTH > 8 ? 16 : 8, ROWS = 16 / COLUMNS, LINES = (HEIGHT + ROWS - 1) / ROWS;

__host__ __device__ constexpr int least(int a, int b) { return a < b ? a : b; }
__host__ __device__ constexpr int lines_of(int rows) { return (rows + ROWS - 1) / ROWS; }
// How many lines further a term reaches.
__host__ __device__ constexpr int far_of(int term) { return lines_of(KERNEL[term] / 2 * DILATION[term]); }
constexpr int FAR = lines_of(REACH), NEAR = least(FAR, LINES - 1), APART = least(2 * FAR, LINES - 1);

// Whether the second matrix has the same piece for lines `line` and `line + apart` as for the two before: where no
// border of the map is in reach.
__host__ __device__ constexpr bool repeats(int line, int apart) {
  return ROWS == 1 && line > REACH - apart && line > 0 && line <= LINES - 1 - REACH;
}
// The pieces in their order: the first matrix by distance, then the second, by distance and line.
__host__ __device__ constexpr int count_pieces() {
  int count = 2 * NEAR + 1;
  for (int apart = 0; apart <= APART; apart++)
    for (int line = 0; line + apart < LINES; line++) count += !repeats(line, apart);
  return count;
}
constexpr int PIECES = count_pieces();
constexpr bool CHAINS = ROWS == 1 && LINES > 2 * REACH;   // no lines lie within reach of both borders

#ifdef MAKE_MATRICES
__host__ __device__ constexpr int before(int term) {
  int count = 0;
  for (int t = 0; t < term; t++) count += 2 * far_of(t) + 1;
  return count;
}

// The piece of a convolution's matrix W^T whose rows are cells of one line, and whose columns are cells of
// the line `apart` lines before.
__device__ __forceinline__ uint4 piece(int apart, const float* window) {
  const int lane = threadIdx.x % 32;
  u32 words[4];
#pragma unroll
  for (int e = 0; e < 4; e++) {
    const int in = lane / 4 + e % 2 * 8, out = lane % 4 * 2 + e / 2 * 8, column = out % COLUMNS;
    const int row = apart * ROWS + in / COLUMNS - out / COLUMNS, tap_column = in % COLUMNS - column;
    words[e] = pack2<T>(column < WIDTH ? at_place(window, row, tap_column) : 0.f,
                        column + 1 < WIDTH ? at_place(window, row, tap_column - 1) : 0.f);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// What the vector of ones gives: for each cell the sum of a window's places that lead from it to cells of the map. By
// one warp, which makes an integral image of the window; [EDGE][EDGE], the first row and column of zeros.
constexpr int EDGE = WINDOW + 1;
__device__ __forceinline__ void push_ones(float* __restrict__ rest, float* window) {
  const int lane = threadIdx.x % 32;
  if (lane < WINDOW)
    for (int i = 1; i < WINDOW; i++) window[(lane + 1) * EDGE + i + 1] += window[(lane + 1) * EDGE + i];
  __syncwarp();
  if (lane < WINDOW)
    for (int i = 1; i < WINDOW; i++) window[(i + 1) * EDGE + lane + 1] += window[i * EDGE + lane + 1];
  __syncwarp();
#pragma unroll 1
  for (int i = lane; i < LINES * 16; i += 32) {
    const int row = i / 16 * ROWS + i % 16 / COLUMNS, column = i % COLUMNS;
    const int top = max(REACH + row - (HEIGHT - 1), 0) * EDGE, bottom = (min(REACH + row, WINDOW - 1) + 1) * EDGE;
    const int left = max(REACH + column - (WIDTH - 1), 0), right = min(REACH + column, WINDOW - 1) + 1;
    rest[i] = row < HEIGHT && column < WIDTH
                  ? window[bottom + right] - window[bottom + left] - window[top + right] + window[top + left]
                  : 0.f;
  }
}

// along, own, constant: [TERMS, c]; pieces: [c, PIECES, 32]; rest: [c, LINES, 16].
extern "C" __global__ void __launch_bounds__(THREADS)
    make_matrices(const W* w0, const W* w1, const W* w2, const W* w3, const W* w4, const W* w5,
                  const float* __restrict__ along, const float* __restrict__ own, const float* __restrict__ constant,
                  uint4* __restrict__ pieces, float* __restrict__ rest, int c) {
  const W* const w[6] = {w0, w1, w2, w3, w4, w5};
  constexpr int WARPS = THREADS / 32;
  const int channel = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint4* of_terms = (uint4*)smem;                         // [before(TERMS)][32]
  // [TERMS][PLACES], [PLACES], [EDGE][EDGE]
  float *windows = (float*)(of_terms + before(TERMS) * 32), *merged = windows + TERMS * PLACES,
        *pushed = merged + PLACES;
  load_windows(windows, w, channel);
  float factor[TERMS], of_gradient[TERMS], of_ones[TERMS];
#pragma unroll
  for (int t = 0; t < TERMS; t++)
    factor[t] = __ldg(own + t * c + channel), of_gradient[t] = __ldg(along + t * c + channel),
    of_ones[t] = __ldg(constant + t * c + channel);
  if (threadIdx.x < EDGE) pushed[threadIdx.x] = pushed[threadIdx.x * EDGE] = 0.f;
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < PLACES; i += THREADS) {
    float sum = 0.f, ones = 0.f;
#pragma unroll
    for (int t = 0; t < TERMS; t++)
      sum += of_gradient[t] * windows[t * PLACES + i], ones += of_ones[t] * windows[t * PLACES + i];
    merged[i] = sum, pushed[(i / WINDOW + 1) * EDGE + i % WINDOW + 1] = ones;
  }
  __syncthreads();
  pieces += (i64)channel * PIECES * 32 + lane;
#pragma unroll 1
  // those of the terms, then those of the first matrix
  for (int i = warp; i < before(TERMS) + 2 * NEAR + 1; i += WARPS) {
    const float* window = windows;
    int middle = far_of(0);
#pragma unroll
    for (int t = 1; t < TERMS; t++)
      if (i >= before(t)) window = windows + t * PLACES, middle = before(t) + far_of(t);
    if (i >= before(TERMS)) window = merged, middle = before(TERMS) + NEAR;
    const uint4 found = piece(i - middle, window);
    if (i < before(TERMS)) of_terms[i * 32 + lane] = found;
    else pieces[(i - before(TERMS)) * 32] = found;
  }
  __syncthreads();
  // W^T of a term from line `line` to line `out`; what lies below the map is no output.
  const auto transposed_term = [&](int t, int line, int out) {
    uint4 found = of_terms[(before(t) + line - out + far_of(t)) * 32 + lane];
    if (ROWS == 2 && out * 2 + 1 == HEIGHT) found.z = found.w = 0u;
    return found;
  };
  // The part of a piece of the second matrix, lines `line` and line + apart, that comes from one line of the outputs.
  const auto add = [&](float (&sum)[2][4], int t, int line, int apart, int out) {
    float acc[2][4] = {};
    const uint4 a = transposed_term(t, line, out), b = transposed_term(t, line + apart, out);
    const u32 rows[4] = {a.x, a.y, a.z, a.w};
    mma_16816<T>(acc[0], rows, b.x, b.z);
    mma_16816<T>(acc[1], rows, b.y, b.w);
#pragma unroll
    for (int e = 0; e < 8; e++) sum[e / 4][e % 4] += factor[t] * acc[e / 4][e % 4];
  };
  const auto put = [&](int number, const float (&sum)[2][4]) {
    pieces[number * 32] = make_uint4(pack2<T>(sum[0][0], sum[0][1]), pack2<T>(sum[0][2], sum[0][3]),
                                     pack2<T>(sum[1][0], sum[1][1]), pack2<T>(sum[1][2], sum[1][3]));
  };
  if constexpr (CHAINS) {
    // An output line `above` lines above the first of both gives the same part wherever they lie. So, from the upper
    // border down and from the lower border up, each piece is the one before and one part more.
    for (int chain = warp; chain < 2 * APART + 2; chain += WARPS) {
      const int apart = chain / 2, way = chain % 2 ? -1 : 1, last = LINES - 1 - apart;
      if (way < 0 && apart >= REACH) continue;
      int number = 2 * NEAR + 1, above = way > 0 ? -REACH : REACH - apart;
#pragma unroll 1
      for (int before = 0; before < apart + (way < 0); before++)  // pieces, of which some repeat
        number += LINES - before - max(min(LINES - 1 - REACH, LINES - 1 - before) - max(REACH - before, 0), 0);
      float sum[2][4] = {};
      for (int line = way > 0 ? 0 : last; way > 0 ? line <= max(REACH - apart, 0) : line >= LINES - REACH;
           line += way) {
        const int until = way > 0 ? min(REACH - apart, line) : line - (LINES - 1);
        for (; way * above <= way * until; above += way)
#pragma unroll
          for (int t = 0; t < TERMS; t++) {
            const int edge = far_of(t), d = DILATION[t];
            if (above >= -edge && above + apart <= edge && above % d == 0 && apart % d == 0)
              add(sum, t, line, apart, line - above);
          }
        put(way > 0 ? number++ : --number, sum);
      }
    }
  } else {
    int number = 2 * NEAR + 1;
    for (int apart = 0; apart <= APART; apart++)
      for (int line = 0; line + apart < LINES; line++) {
        if (repeats(line, apart)) continue;
        const int at = number++;
        if (at % WARPS != warp) continue;
        float sum[2][4] = {};
#pragma unroll
        for (int t = 0; t < TERMS; t++)
          for (int out = max(0, line + apart - far_of(t)); out <= min(LINES - 1, line + far_of(t)); out++)
            add(sum, t, line, apart, out);
        put(at, sum);
      }
  }
  if (warp == WARPS - 1) push_ones(rest + (i64)channel * (LINES * 16), pushed);
}
#endif

#ifdef INPUT_GRADIENT
constexpr int IMAGES = 8;                                // of a block: the columns of a product
// elements; an odd count of 16 bytes: eight images hit all banks
constexpr int IMAGE = 8 * (LINES * 2 | 1), PLANE = IMAGES * IMAGE;

// Eight channels of two columns: what a thread moves at a time.
struct Unit { int part, column, row, image; };
constexpr int PARTS = CB / 8, UNITS = IMAGES * LINES * ROWS * COLUMNS / 2 * PARTS,
              EACH = (UNITS + THREADS - 1) / THREADS, TOGETHER = EACH < 4 ? EACH : 4;

__device__ __forceinline__ Unit unit_of(int u) {
  const int pair = u / PARTS;
  return {u % PARTS, pair % (COLUMNS / 2) * 2, pair / (COLUMNS / 2) % (LINES * ROWS),
          pair / (COLUMNS / 2) / (LINES * ROWS)};
}
__device__ __forceinline__ int place_of(const Unit& unit) {
  return unit.part * 8 * PLANE + unit.image * IMAGE + unit.row * COLUMNS + unit.column;
}
__device__ __forceinline__ i64 cell_of(const Unit& unit, int image0) {
  return ((i64)(image0 + unit.image) * HEIGHT + unit.row) * WIDTH + unit.column;
}

__device__ __forceinline__ void load_planes(T* planes, const T* __restrict__ x, int image0, int n, int c) {
#pragma unroll 1
  for (int first = 0; first < EACH; first += TOGETHER) {
    uint4 held[TOGETHER][2];
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
      const int u = threadIdx.x + (first + i) * THREADS;
      const Unit unit = unit_of(u);
      const bool there = u < UNITS && image0 + unit.image < n && unit.row < HEIGHT;
      const T* from = x + cell_of(unit, image0) * c + 8 * unit.part;
      held[i][0] = there && unit.column < WIDTH ? __ldg((const uint4*)from) : make_uint4(0, 0, 0, 0);
      held[i][1] = there && unit.column + 1 < WIDTH ? __ldg((const uint4*)(from + c)) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    // a word holds two channels of one column; a plane needs two columns of one channel
    for (int i = 0; i < TOGETHER; i++) {
      const int u = threadIdx.x + (first + i) * THREADS;
      if (u >= UNITS) break;
      u32* to = (u32*)(planes + place_of(unit_of(u)));
      const u32 a[4] = {held[i][0].x, held[i][0].y, held[i][0].z, held[i][0].w},
                b[4] = {held[i][1].x, held[i][1].y, held[i][1].z, held[i][1].w};
#pragma unroll
      for (int e = 0; e < 4; e++)
        to[2 * e * (PLANE / 2)] = prmt(a[e], b[e], 0x5410), to[(2 * e + 1) * (PLANE / 2)] = prmt(a[e], b[e], 0x7632);
    }
  }
}

__device__ __forceinline__ void store_planes(T* __restrict__ y, const T* planes, int image0, int n, int c) {
  for (int u = threadIdx.x; u < UNITS; u += THREADS) {
    const Unit unit = unit_of(u);
    if (image0 + unit.image >= n || unit.row >= HEIGHT || unit.column >= WIDTH) continue;
    const u32* from = (const u32*)(planes + place_of(unit));
    u32 a[4], b[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const u32 even = from[2 * e * (PLANE / 2)], odd = from[(2 * e + 1) * (PLANE / 2)];
      a[e] = prmt(even, odd, 0x5410), b[e] = prmt(even, odd, 0x7632);
    }
    T* to = y + cell_of(unit, image0) * c + 8 * unit.part;
    *(uint4*)to = make_uint4(a[0], a[1], a[2], a[3]);
    if (unit.column + 1 < WIDTH) *(uint4*)(to + c) = make_uint4(b[0], b[1], b[2], b[3]);
  }
}

// The lines of a plane as fragments: sixteen cells of eight images.
__device__ __forceinline__ void load_lines(u32 (&lines)[LINES][2], const T* plane) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int line = 0; line < LINES; line++)
    ldmatrix_x2(lines[line], plane + lane % 8 * IMAGE + line * 16 + lane / 8 % 2 * 8);
}

// A block has CB channels of eight images, a warp a channel. pieces, rest: as `make_matrices` leaves them.
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    input_gradient(const T* __restrict__ x, const T* __restrict__ gy, const uint4* __restrict__ pieces,
                   const float* __restrict__ rest, T* __restrict__ gx, int n, int c) {
  T *planes = (T*)smem, *planes_g = planes + CB * PLANE;
  const int groups = c / CB, channel0 = blockIdx.x % groups * CB, image0 = blockIdx.x / groups * IMAGES,
            lane = threadIdx.x % 32, channel = channel0 + threadIdx.x / 32;
  const uint4* next = pieces + (i64)channel * PIECES * 32 + lane;
  uint4 ahead[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD && i < PIECES; i++) ahead[i] = __ldg(next + i * 32);
  load_planes(planes_g, gy + channel0, image0, n, c);
  load_planes(planes, x + channel0, image0, n, c);
  float acc[LINES][4];                                   // rows of a line's cells, columns of images
  const float* start = rest + (i64)channel * (LINES * 16) + lane / 4;
#pragma unroll
  for (int line = 0; line < LINES; line++)
    acc[line][0] = acc[line][1] = __ldg(start + 16 * line), acc[line][2] = acc[line][3] = __ldg(start + 16 * line + 8);
  __syncthreads();
  int number = 0;
  const auto take = [&](u32 (&to)[4]) {
    const uint4 found = ahead[number % AHEAD];
    if (number + AHEAD < PIECES) ahead[number % AHEAD] = __ldg(next + (number + AHEAD) * 32);
    number++;
    to[0] = found.x, to[1] = found.y, to[2] = found.z, to[3] = found.w;
  };
  u32 lines[LINES][2], piece[4], turned[4];
  load_lines(lines, planes_g + threadIdx.x / 32 * PLANE);
#pragma unroll
  for (int apart = -NEAR; apart <= NEAR; apart++) {
    take(piece);
#pragma unroll
    for (int line = 0; line < LINES; line++)
      if (line - apart >= 0 && line - apart < LINES)
        mma_16816<T>(acc[line], piece, lines[line - apart][0], lines[line - apart][1]);
  }
  T* plane = planes + threadIdx.x / 32 * PLANE;
  load_lines(lines, plane);
#pragma unroll
  for (int apart = 0; apart <= APART; apart++)
#pragma unroll
    for (int line = 0; line + apart < LINES; line++) {
      if (!repeats(line, apart)) {
        take(piece);
        if (apart)
          turned[0] = transposed(piece[0]), turned[1] = transposed(piece[2]), turned[2] = transposed(piece[1]),
          turned[3] = transposed(piece[3]);
      }
      mma_16816<T>(acc[line], piece, lines[line + apart][0], lines[line + apart][1]);
      if (apart) mma_16816<T>(acc[line + apart], turned, lines[line][0], lines[line][1]);
    }
  __syncwarp();
  T* to = plane + lane % 4 * 2 * IMAGE + lane / 4;
#pragma unroll
  for (int line = 0; line < LINES; line++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const u32 both = pack2<T>(acc[line][2 * half], acc[line][2 * half + 1]);
      to[line * 16 + half * 8].bits = (u16)both, to[line * 16 + half * 8 + IMAGE].bits = (u16)(both >> 16);
    }
  __syncthreads();
  store_planes(gx + channel0, planes, image0, n, c);
}
#endif
