// Products with banded Toeplitz matrices on tensor cores, which toeplitz.cu and branches.cu share;
// the former says how they work.
//
// Defined at compile time, besides what planes.cuh needs: UNROLL.

extern __shared__ unsigned char smem[];

#define PITCH_OF(blocks) (8 * ((blocks) | 1))            // an odd count of 16 bytes: eight rows of a fragment hit all banks

// SIDE: blocks of halo at each side; 0 when the tile is a whole zero-padded row
constexpr int BLOCKS_IN = NT + 2 * SIDE;
constexpr int COLS_IN = 8 * BLOCKS_IN;
constexpr int PITCH = PITCH_OF(BLOCKS_IN);

typedef u32 Fragment[2];                                 // 16 rows of one block: rows 0-7, rows 8-15

// lane address of a fragment's rows: matrices 0 and 1 are its two halves, 2 and 3 those of the next block
__device__ __forceinline__ int fragment_row(int lane) { return lane % 16; }
__device__ __forceinline__ int fragment_col(int lane) { return lane / 16 * 8; }

template <int COUNT, bool TRANSPOSED>
__device__ __forceinline__ void load_fragments(Fragment (&f)[COUNT], const T* rows) {
#pragma unroll
  for (int i = 0; i + 1 < COUNT; i += 2) {
    u32 r[4];
    if constexpr (TRANSPOSED) ldmatrix_x4_trans(r, rows + 8 * i);
    else ldmatrix_x4(r, rows + 8 * i);
    f[i][0] = r[0], f[i][1] = r[1], f[i + 1][0] = r[2], f[i + 1][1] = r[3];
  }
  if constexpr (COUNT % 2) {
    u32 r[2];
    if constexpr (TRANSPOSED) ldmatrix_x2_trans(r, rows + 8 * (COUNT - 1));
    else ldmatrix_x2(r, rows + 8 * (COUNT - 1));
    f[COUNT - 1][0] = r[0], f[COUNT - 1][1] = r[1];
  }
}

constexpr int TAPS = 16 * LB + 16;                       // of a padded kernel row
constexpr int FIRST_TAP = 8 * LB + 8 - REACH_COLS;       // where its first tap stands
constexpr int WINDOW = 2 * LB + 1;                       // pieces of a kernel row
constexpr int ROW_PAIRS = UNROLL;                        // pairs of kernel rows in one turn of a loop

// The block's kernels as padded rows, each twice. The first taps are on their way while the rest is cleared.
__device__ __forceinline__ void pad_taps(T* taps, const T* __restrict__ w, int channel0, int channels, bool flip) {
  constexpr int EACH = (CB * KH * KW + THREADS - 1) / THREADS, TOGETHER = EACH < 12 ? EACH : 12;
  const int count = min(CB, channels - channel0) * KH * KW;
  w += (i64)channel0 * (KH * KW);
  T held[TOGETHER];
  const auto fetch = [&](int first) {
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
      const int at = first + i * THREADS + threadIdx.x;
      held[i].bits = at < count ? __ldg(&w[at].bits) : (u16)0;
    }
  };
  fetch(0);
  clear<CB * KH * 2 * TAPS * 2>(taps);
  __syncthreads();
#pragma unroll 1
  for (int first = 0; first < CB * KH * KW; first += TOGETHER * THREADS) {
    if (first) fetch(first);
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
      const int at = first + i * THREADS + threadIdx.x, channel = at / (KH * KW), tap = at % (KH * KW),
                to = flip ? KH * KW - 1 - tap : tap;
      if (at >= count) break;
      T* row = taps + (channel * KH + to / KW) * 2 * TAPS + FIRST_TAP + to % KW * DIL;
      row[0] = row[TAPS - 1] = held[i];
    }
  }
}

// Where a lane reads the two taps of its first piece: a row holds its taps, its centre at 8 LB + 8,
// and then the same moved by one.
template <bool TURNED> __device__ __forceinline__ const u32* lane_taps(const T* taps) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, at = 8 + 2 * t - g;
  if (TURNED) return (const u32*)taps + (~g & 1) * (TAPS / 2) + ((TAPS - 1 - at) >> 1);
  return (const u32*)taps + (g & 1) * (TAPS / 2) + (at >> 1);
}

template <bool TURNED> __device__ __forceinline__ void read_taps(u32 (&w)[WINDOW], const u32* taps, int row) {
#pragma unroll
  for (int b = 0; b < WINDOW; b++)
    w[b] = TURNED ? prmt(taps[row * TAPS - 4 * b], 0u, 0x1032) : taps[row * TAPS + 4 * b];
}

// acc[j] += pieces of one kernel row times the blocks around j; what is left over of two rows is done together
template <bool TWO_ROWS>
__device__ __forceinline__ void multiply(float (&acc)[NT][4], const Fragment (&f0)[BLOCKS_IN],
                                         const Fragment (&f1)[BLOCKS_IN], const u32 (&w0)[WINDOW],
                                         const u32 (&w1)[WINDOW]) {
#pragma unroll
  for (int j = 0; j < NT; j++) {
    const int low = max(-LB, -j - SIDE), high = min(LB, NT - 1 - j + SIDE);
#pragma unroll
    for (int b = -LB; b <= LB; b++) {
      if (b < low || b > high) continue;
      const int i = j + b + SIDE;
      if ((b - low) % 2 == 0 && b < high) {
        const u32 a0[4] = {f0[i][0], f0[i][1], f0[i + 1][0], f0[i + 1][1]};
        mma_16816<T>(acc[j], a0, w0[b + LB], w0[b + LB + 1]);
        if constexpr (TWO_ROWS) {
          const u32 a1[4] = {f1[i][0], f1[i][1], f1[i + 1][0], f1[i + 1][1]};
          mma_16816<T>(acc[j], a1, w1[b + LB], w1[b + LB + 1]);
        }
      } else if ((b - low) % 2 == 0) {
        if constexpr (TWO_ROWS) {
          const u32 a[4] = {f0[i][0], f0[i][1], f1[i][0], f1[i][1]};
          mma_16816<T>(acc[j], a, w0[b + LB], w1[b + LB]);
        } else {
          mma_1688<T>(acc[j], f0[i][0], f0[i][1], w0[b + LB]);
        }
      }
    }
  }
}

// acc[i] += ROWS_K kernel rows, STEP rows of the plane apart, times the rows from rows[i] on. `taps` is the lane's
// place in the padded rows; TURNED: they are read back to front, which is the kernel turned round.
template <int TILES, int ROWS_K, int STEP, bool TURNED>
__device__ __forceinline__ void convolve(float (&acc)[TILES][NT][4], const T* const (&rows)[TILES], const u32* taps) {
#pragma unroll ROW_PAIRS
  for (int kh = 0; kh + 1 < ROWS_K; kh += 2) {
    u32 w0[WINDOW], w1[WINDOW];
    read_taps<TURNED>(w0, taps, TURNED ? ROWS_K - 1 - kh : kh);
    read_taps<TURNED>(w1, taps, TURNED ? ROWS_K - 2 - kh : kh + 1);
#pragma unroll
    for (int i = 0; i < TILES; i++) {
      Fragment f0[BLOCKS_IN], f1[BLOCKS_IN];
      load_fragments<BLOCKS_IN, false>(f0, rows[i] + kh * STEP * PITCH);
      load_fragments<BLOCKS_IN, false>(f1, rows[i] + (kh + 1) * STEP * PITCH);
      multiply<true>(acc[i], f0, f1, w0, w1);
    }
  }
  u32 w0[WINDOW];
  read_taps<TURNED>(w0, taps, TURNED ? 0 : ROWS_K - 1);
#pragma unroll
  for (int i = 0; i < TILES; i++) {
    Fragment f0[BLOCKS_IN];
    load_fragments<BLOCKS_IN, false>(f0, rows[i] + (ROWS_K - 1) * STEP * PITCH);
    multiply<false>(acc[i], f0, f0, w0, w0);
  }
}

// Gradient of the weight. For each kernel row, D[i, j] = sum over map rows of x[row + kh, i] g[row, j] for input
// columns i around output columns j; a tap is the sum of one diagonal.
constexpr int FAR = SIDE ? LB : (LB < NT - 1 ? LB : NT - 1);  // blocks that meet at all
constexpr int PIECES = 2 * FAR + 1;
constexpr int SCRATCH_PITCH = 9, SCRATCH = 8 * PIECES * SCRATCH_PITCH;

template <int ROWS_K> struct Sums {
  float pair[ROWS_K][FAR > 0 ? FAR : 1][4];                  // pieces 2q and 2q + 1 of one kernel row
  float left[(ROWS_K + 1) / 2][4];                           // the last piece of two kernel rows
};

template <int ROWS_K, int KK>
__device__ __forceinline__ void correlate(Sums<ROWS_K>& d, const Fragment (&f0)[BLOCKS_IN],
                                          const Fragment (&f1)[BLOCKS_IN], const Fragment (&g)[NT], bool two) {
#pragma unroll
  for (int j = 0; j < NT; j++) {
#pragma unroll
    for (int q = 0; q < FAR; q++) {
      const int i = j - FAR + 2 * q + SIDE;              // first of the two blocks
      const bool first = i >= 0 && i < BLOCKS_IN, second = i + 1 >= 0 && i + 1 < BLOCKS_IN;
      if (!first && !second) continue;
      const u32 a0[4] = {first ? f0[first ? i : 0][0] : 0u, second ? f0[second ? i + 1 : 0][0] : 0u,
                         first ? f0[first ? i : 0][1] : 0u, second ? f0[second ? i + 1 : 0][1] : 0u};
      mma_16816<T>(d.pair[KK][q], a0, g[j][0], g[j][1]);
      if constexpr (KK + 1 < ROWS_K) {
        const u32 a1[4] = {first ? f1[first ? i : 0][0] : 0u, second ? f1[second ? i + 1 : 0][0] : 0u,
                           first ? f1[first ? i : 0][1] : 0u, second ? f1[second ? i + 1 : 0][1] : 0u};
        if (two) mma_16816<T>(d.pair[KK + 1][q], a1, g[j][0], g[j][1]);
      }
    }
    const int i = j + FAR + SIDE;
    if (i < BLOCKS_IN) {
      const u32 a[4] = {f0[i < BLOCKS_IN ? i : 0][0], two ? f1[i < BLOCKS_IN ? i : 0][0] : 0u,
                        f0[i < BLOCKS_IN ? i : 0][1], two ? f1[i < BLOCKS_IN ? i : 0][1] : 0u};
      mma_16816<T>(d.left[KK / 2], a, g[j][0], g[j][1]);
    }
  }
}

// A kernel row after the other, STEP rows of the plane apart.
template <int ROWS_K, int STEP, int KK = 0>
__device__ __forceinline__ void correlate_rows(Sums<ROWS_K>& d, const T* x_rows, const Fragment (&g)[NT],
                                               int rows_left) {
  if constexpr (KK < ROWS_K) {
    if (KK < rows_left) {
      const bool two = KK + 1 < ROWS_K && KK + 1 < rows_left;
      Fragment f0[BLOCKS_IN], f1[BLOCKS_IN];
      load_fragments<BLOCKS_IN, true>(f0, x_rows + KK * STEP * PITCH);
      load_fragments<BLOCKS_IN, true>(f1, x_rows + (two ? KK + 1 : KK) * STEP * PITCH);
      correlate<ROWS_K, KK>(d, f0, f1, g, two);
      correlate_rows<ROWS_K, STEP, KK + 2>(d, x_rows, g, rows_left);
    }
  }
}

__device__ __forceinline__ void put_piece(float* scratch, int piece, float low, float high) {
  const int lane = threadIdx.x % 32;
  float* to = scratch + (8 * piece + lane / 4) * SCRATCH_PITCH + lane % 4 * 2;
  to[0] = low, to[1] = high;
}

template <int ROWS_K> __device__ __forceinline__ void clear_sums(Sums<ROWS_K>& d) {
#pragma unroll
  for (int k = 0; k < ROWS_K; k++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
#pragma unroll
      for (int q = 0; q < FAR; q++) d.pair[k][q][e] = 0.f;
      d.left[k / 2][e] = 0.f;
    }
}

// The sums of `rows` kernel rows, COLS_K taps STEP columns apart each, to out[rows][COLS_K]. `scratch` is
// the warp's own, SCRATCH floats.
template <int ROWS_K, int COLS_K, int STEP>
__device__ __forceinline__ void put_taps(float* out, const Sums<ROWS_K>& d, float* scratch, int rows) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < ROWS_K; k++) {
    if (k >= rows) break;
#pragma unroll
    for (int q = 0; q < FAR; q++) {
      put_piece(scratch, 2 * q, d.pair[k][q][0], d.pair[k][q][1]);
      put_piece(scratch, 2 * q + 1, d.pair[k][q][2], d.pair[k][q][3]);
    }
    put_piece(scratch, 2 * FAR, d.left[k / 2][k % 2 * 2], d.left[k / 2][k % 2 * 2 + 1]);
    __syncwarp();
    for (int kw = lane; kw < COLS_K; kw += 32) {
      float sum = 0.f;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const int row = (kw - COLS_K / 2) * STEP + j + 8 * FAR;
        if (row >= 0 && row < 8 * PIECES) sum += scratch[row * SCRATCH_PITCH + j];
      }
      out[k * COLS_K + kw] = sum;
    }
    __syncwarp();
  }
}
