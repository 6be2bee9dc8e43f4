// Products of the cells of maps, summed over the images and over all pairs of rows that lie as far apart: what
// digest.cu needs of maps that are too large for all pairs of rows by themselves (gram.cu).
//
// A block takes CB channels of eight images at a time, whole maps, and a few distances of rows; a warp a channel and
// half of the columns of the upper row. Matrix rows and columns are columns of the map, and the depth of a product
// is eight images of two rows.
//
// Defined at compile time: T; HEIGHT; WIDTH, 17 to 32; APART, distances of rows; STARTS, where the blocks'
// shares of them begin, and SHARES.

extern __shared__ unsigned char smem[];

constexpr int CB = 8, IMAGES = 8, WARPS = 2 * CB, THREADS = 32 * WARPS, BLOCKS = 4, PITCH = 8 * BLOCKS;
// below a map a row of zeros; an odd count of 16 bytes: eight images hit all banks
constexpr int IMAGE = (HEIGHT + 1) * PITCH + 8, PLANE = IMAGES * IMAGE;
constexpr int START[] = STARTS;
static_assert(WIDTH > 16 && WIDTH <= PITCH && sizeof(START) == (SHARES + 1) * sizeof(int),
              "the shares are as many as their beginnings, but one");

// Images as they lie in memory, eight channels of a cell, on their way while the last are multiplied.
constexpr int CELLS = HEIGHT * WIDTH;

__device__ __forceinline__ void fetch(T* cells, const T* __restrict__ x, int image0, int last, int c) {
  for (int i = threadIdx.x; i < IMAGES * CELLS; i += THREADS) {
    const bool there = image0 + i / CELLS < last;
    cp_async_16(cells + 8 * i, there ? x + ((i64)image0 * CELLS + i) * c : x, there);
  }
  cp_async_commit();
}

// From there to planes, two columns at a time.
__device__ __forceinline__ void take_apart(T* planes, const T* cells) {
  constexpr int ACROSS = (WIDTH + 1) / 2;
  for (int u = threadIdx.x; u < IMAGES * HEIGHT * ACROSS; u += THREADS) {
    const int column = u % ACROSS * 2, line = u / ACROSS;
    const uint4* from = (const uint4*)cells + line * WIDTH + column;
    const uint4 one = from[0], other = column + 1 < WIDTH ? from[1] : make_uint4(0, 0, 0, 0);
    u32* to = (u32*)(planes + line / HEIGHT * IMAGE + line % HEIGHT * PITCH + column);
    const u32 a[4] = {one.x, one.y, one.z, one.w}, b[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
    for (int e = 0; e < 4; e++)
      to[2 * e * (PLANE / 2)] = prmt(a[e], b[e], 0x5410), to[(2 * e + 1) * (PLANE / 2)] = prmt(a[e], b[e], 0x7632);
  }
}

template <int SHARE>
__device__ __forceinline__ void play(int share, T* planes, const T* __restrict__ x, float* __restrict__ sums, int first,
                                     int last, int c) {
  if constexpr (SHARE < SHARES) {
    if (share != SHARE) return play<SHARE + 1>(share, planes, x, sums, first, last, c);
    constexpr int FROM = START[SHARE], COUNT = START[SHARE + 1] - FROM;
    const int lane = threadIdx.x % 32, half = threadIdx.x / 32 % 2;
    const T* plane = planes + threadIdx.x / 64 * PLANE + lane % 8 * IMAGE;
    const T *upper = plane + lane / 16 * PITCH + 8 * (2 * half + lane / 8 % 2),
            *lower = plane + FROM * PITCH + 8 * (lane / 8);
    float acc[COUNT][BLOCKS][4] = {};
    T* cells = planes + CB * PLANE;
    fetch(cells, x, first, last, c);
    for (int image = first; image < last; image += IMAGES) {
      cp_async_wait<0>();
      __syncthreads();
      take_apart(planes, cells);
      __syncthreads();
      if (image + IMAGES < last) fetch(cells, x, image + IMAGES, last, c);
      u32 rows[COUNT + 1][4];                            // the lower rows, from FROM below this one on
#pragma unroll
      for (int i = 0; i < COUNT - 1; i++)
        if (FROM + i <= HEIGHT) ldmatrix_x4_trans(rows[i + 2], lower + i * PITCH);
#pragma unroll 1
      for (int row = 0; row + FROM < HEIGHT; row += 2) {
        u32 a[4];
        ldmatrix_x4_trans(a, upper + row * PITCH);
#pragma unroll
        for (int i = 0; i <= COUNT; i++) {
          if (i + 2 <= COUNT) {
#pragma unroll
            for (int e = 0; e < 4; e++) rows[i][e] = rows[i + 2][e];
          } else {
            ldmatrix_x4_trans(rows[i], lower + (min(row + FROM + i, HEIGHT) - FROM) * PITCH);
          }
        }
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
          for (int j = 0; j < BLOCKS; j++) mma_16816<T>(acc[i][j], a, rows[i][j], rows[i + 1][j]);
      }
    }
    sums += ((i64)(threadIdx.x / 64) * APART + FROM) * (WIDTH * WIDTH);
#pragma unroll
    for (int i = 0; i < COUNT; i++)
#pragma unroll
      for (int j = 0; j < BLOCKS; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int column = 16 * half + lane / 4 + e / 2 * 8, below = 8 * j + lane % 4 * 2 + e % 2;
          if (column < WIDTH && below < WIDTH) sums[(i * WIDTH + column) * WIDTH + below] = acc[i][j][e];
        }
  }
}

// sums: [parts, c, APART, w, w], over all rows u of x[u, i] x[u + apart, j].
extern "C" __global__ void __launch_bounds__(THREADS)
    shifted(const T* __restrict__ x, float* __restrict__ sums, int n, int c, int parts) {
  T* planes = (T*)smem;
  const int groups = c / CB, channel0 = blockIdx.x % groups * CB, share = blockIdx.x / groups % SHARES,
            part = blockIdx.x / groups / SHARES;
  for (int i = threadIdx.x; i < CB * PLANE / 8; i += THREADS) ((uint4*)planes)[i] = make_uint4(0, 0, 0, 0);
  const int each = (n + parts * IMAGES - 1) / (parts * IMAGES) * IMAGES, first = part * each;
  play<0>(share, planes, x + channel0, sums + ((i64)part * c + channel0) * (APART * WIDTH * WIDTH), first,
          min(first + each, n), c);
}

// The sums over the images: [h, w, c] of x to [c, h, w].
extern "C" __global__ void __launch_bounds__(THREADS)
    sum_images(const T* __restrict__ x, float* __restrict__ total, int n, int c) {
  const int vector = blockIdx.x * blockDim.x + threadIdx.x, cell = vector / (c / 8), channel = vector % (c / 8) * 8;
  if (cell >= HEIGHT * WIDTH) return;
  float sum[8] = {};
#pragma unroll 8
  for (int image = 0; image < n; image++) {
    const uint4 v = __ldg((const uint4*)(x + ((i64)image * (HEIGHT * WIDTH) + cell) * c + channel));
    const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int e = 0; e < 4; e++) sum[2 * e] += lo_float<T>(words[e]), sum[2 * e + 1] += hi_float<T>(words[e]);
  }
#pragma unroll
  for (int e = 0; e < 8; e++) total[(i64)(channel + e) * (HEIGHT * WIDTH) + cell] = sum[e];
}
