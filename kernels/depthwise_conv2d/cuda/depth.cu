// Gradient of the weight of a depthwise convolution of channels-last maps of up to sixteen rows and columns in 16-bit types on tensor cores.
//
// Images are the depth of the products: with eight images as depth, a row of the input (eight columns of it) times a row of the gradient is an
// 8x8 matrix, and all pairs of rows that lie equally far apart add up in the same registers. So a channel's rows are read from shared memory
// once for all kernel rows. Two rows of the gradient with two of the input make a depth of sixteen, two distances the sixteen rows of a
// product. A tap is the sum of a diagonal at last.
//
// Defined from outside: T, KH, KW, TH and TW (rows and columns of a map), SETS (of eight images that a block takes at a time), WARPS,
// MIN_BLOCKS, TOGETHER (units of a thread that are on their way at once), SHARED_BYTES.

extern __shared__ unsigned char smem[];

constexpr int CB = 16, THREADS = 32 * WARPS;             // channels of a block of threads: a sector of memory
constexpr int BLOCKS = (TW + 7) / 8, FAR = BLOCKS - 1, PIECES = 2 * FAR + 1;  // of eight columns; between blocks that meet
constexpr int MATRICES = TH * BLOCKS, SET = 64 * MATRICES, PLANE = SETS * SET;  // of 8 images by 8 columns; elements
constexpr int REACH = KH / 2, PAIRS = (KH + 1) / 2;      // of kernel rows
constexpr int PITCH = 9, SCRATCH = 8 * PIECES * PITCH;   // numbers, of a kernel row
static_assert(2 * CB * PLANE * 2 == SHARED_BYTES, "gpu_tiles.py counts otherwise");
static_assert(2 * SCRATCH * 4 <= PLANE * 2, "a warp adds up its sums where a plane was");

// What a thread moves at a time: four channels of two columns. A warp takes a sector of channels of a row's block of two images.
struct Unit { int quad, column, image, matrix; };
constexpr int TURNS = SETS * 4 * MATRICES;               // of a warp that takes all of a tensor

__device__ __forceinline__ Unit unit_of(int turn) {
  const int lane = threadIdx.x % 32, matrix = turn % MATRICES;
  return {lane % 4, matrix % BLOCKS * 8 + lane / 4 % 4 * 2, turn / MATRICES * 2 + lane / 16, matrix};
}

// Planes are [set of images][row][block of columns][image][column]. Images stand two places further for each quad of channels, so that a
// warp's stores meet all banks; it is the same in both tensors, and their order does not matter.
__device__ __forceinline__ void load_planes(T* planes, const T* __restrict__ x, const T* __restrict__ gy, int image0, int channel0, int n, int c) {
  constexpr int ALL = 2 * TURNS;
#pragma unroll 1
  for (int first = threadIdx.x / 32; first < ALL; first += TOGETHER * WARPS) {
    uint2 held[TOGETHER][2];
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
      const int turn = first + i * WARPS;
      const Unit unit = unit_of(turn % TURNS);
      const int image = image0 + unit.image, row = unit.matrix / BLOCKS, channel = channel0 + 4 * unit.quad;
      const bool there = turn < ALL && image < n && channel < c;
      const T* from = (turn < TURNS ? x : gy) + (((i64)image * TH + row) * TW + unit.column) * c + channel;
      held[i][0] = there && unit.column < TW ? __ldg((const uint2*)from) : make_uint2(0, 0);
      held[i][1] = there && unit.column + 1 < TW ? __ldg((const uint2*)(from + c)) : make_uint2(0, 0);
    }
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {                 // a word holds two channels of one column; a plane wants two columns of one channel
      const int turn = first + i * WARPS;
      if (turn >= ALL) break;
      const Unit unit = unit_of(turn % TURNS);
      const int place = unit.image / 8 * SET + unit.matrix * 64 + (unit.image + 2 * unit.quad) % 8 * 8 + unit.column % 8;
      u32* to = (u32*)(planes + (turn / TURNS * CB + 4 * unit.quad) * PLANE + place);
      to[0] = prmt(held[i][0].x, held[i][1].x, 0x5410);
      to[PLANE / 2] = prmt(held[i][0].x, held[i][1].x, 0x7632);
      to[2 * (PLANE / 2)] = prmt(held[i][0].y, held[i][1].y, 0x5410);
      to[3 * (PLANE / 2)] = prmt(held[i][0].y, held[i][1].y, 0x7632);
    }
  }
}

// Four matrices from `first` on, a lane's two images of its column; what lies behind the last is not asked for.
__device__ __forceinline__ void load_matrices(u32 (&r)[4], const T* set, int first) {
  const int lane = threadIdx.x % 32;
  ldmatrix_x4_trans(r, set + min(first + lane / 8, MATRICES - 1) * 64 + lane % 8 * 8);
}

// sums[p][b]: of kernel rows 2p and 2p + 1, and input blocks that lie b - FAR to the right of the gradient's.
__device__ __forceinline__ void multiply(float (&sums)[PAIRS][PIECES][4], const T* set, const T* set_g) {
  u32 f[(MATRICES + 3) / 4][4];
#pragma unroll
  for (int i = 0; i < (MATRICES + 3) / 4; i++) load_matrices(f[i], set, 4 * i);
  const auto input = [&](int row, int block) {
    const int at = row >= 0 && row < TH ? row * BLOCKS + block : -1;
    return at < 0 ? 0u : f[at < 0 ? 0 : at / 4][at < 0 ? 0 : at % 4];
  };
#pragma unroll
  for (int row = 0; row < TH; row += 2) {
    u32 g[4];
    load_matrices(g, set_g, row * BLOCKS);
#pragma unroll
    for (int p = 0; p < PAIRS; p++) {
      const int seen = row + 2 * p - REACH;              // the input row that the first kernel row shows the first of the two
      if (seen + 2 < 0 || seen >= TH) continue;
      const bool both = 2 * p + 1 < KH;
#pragma unroll
      for (int j = 0; j < BLOCKS; j++)
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) {
          const u32 a[4] = {input(seen, i), both ? input(seen + 1, i) : 0u, input(seen + 1, i), both ? input(seen + 2, i) : 0u};
          mma_16816<T>(sums[p][i - j + FAR], a, g[j], row + 1 < TH ? g[BLOCKS + j] : 0u);
        }
    }
  }
}

// The taps of a channel to out[KH][KW], or on top of what stands there.
__device__ __forceinline__ void put_taps(float* out, const float (&sums)[PAIRS][PIECES][4], float* scratch, bool add) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int p = 0; p < PAIRS; p++) {
#pragma unroll
    for (int b = 0; b < PIECES; b++) {
      float* to = scratch + (8 * b + lane / 4) * PITCH + lane % 4 * 2;
      to[0] = sums[p][b][0], to[1] = sums[p][b][1], to[SCRATCH] = sums[p][b][2], to[SCRATCH + 1] = sums[p][b][3];
    }
    __syncwarp();
    for (int tap = lane; tap < min(2, KH - 2 * p) * KW; tap += 32) {
      const int row0 = tap % KW - KW / 2 + 8 * FAR;
      float sum = 0.f;
#pragma unroll
      for (int j = 0; j < 8; j++)
        if (row0 + j >= 0 && row0 + j < 8 * PIECES) sum += scratch[tap / KW * SCRATCH + (row0 + j) * PITCH + j];
      float* to = out + 2 * p * KW + tap;
      *to = add ? *to + sum : sum;
    }
    __syncwarp();
  }
}

// partial: [splits][c][KH][KW].
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    weight_gradient(const T* __restrict__ x, const T* __restrict__ gy, float* partial, int n, int c, int, int, int splits) {
  overlap_launches();
  T* planes = (T*)smem;
  const int groups = (c + CB - 1) / CB, channel0 = blockIdx.x % groups * CB, split = blockIdx.x / groups;
  for (int image0 = split * 8 * SETS; image0 < n; image0 += splits * 8 * SETS) {
    __syncthreads();
    load_planes(planes, x, gy, image0, channel0, n, c);
    __syncthreads();
#pragma unroll 1
    for (int channel = threadIdx.x / 32; channel < min(CB, c - channel0); channel += WARPS) {
      T* plane = planes + channel * PLANE;
      float sums[PAIRS][PIECES][4];
#pragma unroll
      for (int p = 0; p < PAIRS; p++)
#pragma unroll
        for (int b = 0; b < PIECES; b++)
#pragma unroll
          for (int e = 0; e < 4; e++) sums[p][b][e] = 0.f;
#pragma unroll 1
      for (int set = 0; set < SETS; set++) multiply(sums, plane + set * SET, plane + CB * PLANE + set * SET);
      __syncwarp();
      put_taps(partial + ((i64)split * c + channel0 + channel) * (KH * KW), sums, (float*)plane, image0 != split * 8 * SETS);
    }
  }
}
