// Depthwise convolution in 16-bit types on tensor cores with strands of rows as the columns of the products, for
// strands.cu (channels-last) and strands_first.cu (contiguous).
//
// As in images.cu, eight strands of rows are the columns of the products: eight images, or GROUPS parts of each of
// fewer. What a block of eight columns of an input row adds to a block of an output row is an 8x8 piece of a banded
// Toeplitz matrix, and two by two pieces meet two rows of the strands. A warp takes a channel: it goes through the
// distances between the rows of the input and those of the output, so that the pieces of one distance serve all
// outputs, which are in registers, and a row of the input is read from shared memory once, for all kernel rows.
//
// A plane is one channel: [image][TH][PW], where PW is TW, as it lies in contiguous memory, or TW and columns of zeros
// that make rows whole blocks; a strand's rows above and below are its neighbours'. Strands lie four banks apart, or an
// odd multiple of that, so that the eight of them use all banks. Where rows are whole blocks, ldmatrix and stmatrix
// read and write them; else a lane reads two columns of its strand at a time.
//
// Defined at compile time: T, KH, KW, TH and TW (rows and columns of a map), PW (even), GROUPS, WARPS, SHARED_BYTES.

extern __shared__ unsigned char smem[];

// how far pairs of rows that meet lie apart
constexpr int THREADS = 32 * WARPS, TAPS = KH * KW, UP = KH / 2, APART = (UP + 1) / 2;
constexpr int BLOCKS = (TW + 7) / 8, REACH = (KW / 2 + 7) / 8, FAR = REACH < BLOCKS - 1 ? REACH : BLOCKS - 1,
              PIECES = 2 * FAR + 1;
constexpr int ROWS = TH / GROUPS, PAIRS = (ROWS + 1) / 2, IMAGES = 8 / GROUPS;  // of a strand; of a thread block
constexpr int WORDS = ROWS * PW / 2, GAP = (12 - WORDS % 8) % 8;  // of a strand; between two of them
constexpr int STRAND = 2 * (WORDS + GAP), PLANE = 8 * STRAND;  // elements
// Where a strand has an odd number of rows, the last one is alone: its blocks of columns are multiplied two by two, and
// stand in acc[PAIRS - 1][j / 2].
constexpr bool ALONE = ROWS % 2 == 1;
constexpr bool MATRICES = PW % 8 == 0;

// A row outside of the map: zeros at the end of shared memory.
constexpr int ZEROS = 128;                               // bytes
__device__ __forceinline__ const T* zeros() { return (const T*)(smem + SHARED_BYTES - ZEROS); }
__device__ __forceinline__ void make_zeros() {
  if (threadIdx.x < ZEROS / 16) ((uint4*)zeros())[threadIdx.x] = make_uint4(0, 0, 0, 0);
}

// A lane's two taps of each piece: of a kernel row, from an input block so many blocks to the right of the output's.
// Each is made twice, or four times beside a row that is alone, by instructions that differ, and beside the kernel's
// rows of zeros of which the compiler does not know: of one register that stands in two products, or in two places of
// one, it would make copies anew for every product.
template <bool FLIP> struct Pieces {
  const T *low[PIECES], *high[PIECES];
  // bytes of the two, zeros where there is no tap; of the two in turn
  u32 select[PIECES], turned[PIECES];
  u32 mask[PIECES], bytes[PIECES];                       // the same, of both in one word
  const u32 zero = *(const u32*)zeros();

  __device__ __forceinline__ Pieces(const T* taps) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int b = 0; b < PIECES; b++) {
      const int kw = KW / 2 + 8 * (b - FAR) + lane % 4 * 2 - lane / 4, first = min(max(kw, 0), KW - 1),
                second = min(max(kw + 1, 0), KW - 1);
      low[b] = taps + (FLIP ? TAPS - 1 - first : first), high[b] = taps + (FLIP ? TAPS - 1 - second : second);
      select[b] = (first == kw ? 0x10 : 0x32) | (second == kw + 1 ? 0x5400 : 0x7600);
      turned[b] = select[b] ^ 0x4444;
      mask[b] = (first == kw ? 0xffffu : 0u) | (second == kw + 1 ? 0xffff0000u : 0u);
      bytes[b] = (first == kw ? 0x10 : 0x44) | (second == kw + 1 ? 0x3200 : 0x4400);
    }
  }
  __device__ __forceinline__ void read(u32& one, u32& other, u32& third, u32& fourth, int kh, int b) const {
    const bool there = kh >= 0 && kh < KH;
    const u32 l = there ? low[b][FLIP ? -kh * KW : kh * KW].bits : zero,
              h = there ? high[b][FLIP ? -kh * KW : kh * KW].bits : zero;
    one = prmt(l, h, select[b]), other = prmt(h, l, turned[b]);
    if (!ALONE) return;
    const u32 both = h * 65536 + l;
    third = both & mask[b], fourth = prmt(both, 0u, bytes[b]);
  }
};

// How many strands below its own a lane finds a row.
__device__ __forceinline__ constexpr int strands_away(int row) { return (row + 16 * ROWS) / ROWS - 16; }

// Two rows of the strands, `pair` pairs from each strand's first. Zeros stand outside of the map.
__device__ __forceinline__ void read_rows(u32 (&b)[BLOCKS][2], const T* plane, int pair) {
  const int lane = threadIdx.x % 32;
  // lanes 0 to 7 say where eight strands' first rows lie, 8 to 15 where the second ones, then of the next block
  if constexpr (MATRICES) {
    const int strand = lane % 8, k = lane / 8 % 2, away = k ? strands_away(2 * pair + 1) : strands_away(2 * pair);
    const T* from = plane + strand * STRAND + (2 * pair + k) * PW + away * 2 * GAP + lane / 16 * 8;
    if ((strands_away(2 * pair) || strands_away(2 * pair + 1)) &&
        (strand % GROUPS + away < 0 || strand % GROUPS + away >= GROUPS))
      from = zeros();
#pragma unroll
    for (int i = 0; i < BLOCKS; i += 2) {
      if (i + 1 < BLOCKS) {
        u32 two[4];
        ldmatrix_x4(two, from + 8 * i);
        b[i][0] = two[0], b[i][1] = two[1], b[i + 1 < BLOCKS ? i + 1 : i][0] = two[2],
        b[i + 1 < BLOCKS ? i + 1 : i][1] = two[3];
      } else {
        ldmatrix_x2(b[i], from + 8 * i);
      }
    }
  } else {
    const int g = lane / 4, t = lane % 4, part = g % GROUPS;
    const u32* from = (const u32*)(plane + g * STRAND + 2 * t);
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const int row = 2 * pair + k, away = strands_away(row);
      const bool there = part + away >= 0 && part + away < GROUPS;
#pragma unroll
      for (int i = 0; i < BLOCKS; i++)
        b[i][k] = there && (8 * i + 8 <= TW || 8 * i + 2 * t < TW) ? from[(row * PW + 8 * i) / 2 + away * GAP] : 0u;
    }
  }
}

template <bool FLIP>
__device__ __forceinline__ void convolve(float (&acc)[PAIRS][BLOCKS][4], const T* plane, const T* taps) {
  const Pieces<FLIP> tap(taps);
  u32 b[PAIRS + 2 * APART][BLOCKS][2], before[PIECES];  // rows, from the first that a strand sees on
#pragma unroll
  for (int in = 0; in < PAIRS - 1; in++)
    if (GROUPS > 1 || (in >= APART && in < APART + PAIRS)) read_rows(b[in], plane, in - APART);
#pragma unroll
  for (int e = 0; e < PIECES; e++) {
    u32 unused[3];
    tap.read(unused[0], before[e], unused[1], unused[2], UP - 2 * APART - 1, e);
  }
#pragma unroll
  for (int apart = -APART; apart <= APART; apart++) {
    const int kh = 2 * apart + UP, in = PAIRS - 1 + apart;
    const auto meets = [&](int out) { return GROUPS > 1 || (out + apart >= 0 && out + apart < PAIRS); };
    if (meets(PAIRS - 1)) read_rows(b[in + APART], plane, in);
    u32 alone[PIECES + 1][4];                            // of a block and of the one to its right, two kernel rows
#pragma unroll
    for (int e = 0; e < PIECES; e++) {
      u32 a[4];
      a[1] = before[e];
      tap.read(a[0], a[3], alone[e][0], alone[e + 1][1], kh, e);
      tap.read(a[2], before[e], alone[e][2], alone[e + 1][3], kh + 1, e);
#pragma unroll
      for (int out = 0; out < PAIRS - ALONE; out++) {
        if (!meets(out)) continue;
#pragma unroll
        for (int j = 0; j < BLOCKS; j++) {
          const int i = j + e - FAR;
          if (i >= 0 && i < BLOCKS)
            mma_16816<T>(acc[out][j], a, b[out + apart + APART][i < 0 || i >= BLOCKS ? 0 : i][0],
                         b[out + apart + APART][i < 0 || i >= BLOCKS ? 0 : i][1]);
        }
      }
    }
    if (!ALONE || !meets(PAIRS - 1)) continue;
    alone[0][1] = alone[0][3] = alone[PIECES][0] = alone[PIECES][2] = tap.zero;
#pragma unroll
    for (int e = 0; e <= PIECES; e++)
#pragma unroll
      for (int j = 0; j < BLOCKS; j += 2) {
        const int i = j + e - FAR;
        if (i >= 0 && i < BLOCKS && (e < PIECES || j + 1 < BLOCKS))
          mma_16816<T>(acc[PAIRS - 1][j / 2], alone[e], b[in + APART][i < 0 || i >= BLOCKS ? 0 : i][0],
                       b[in + APART][i < 0 || i >= BLOCKS ? 0 : i][1]);
      }
  }
}

// The outputs of the warp's channel, column g of strands 2t and 2t + 1, to its plane.
__device__ __forceinline__ void put_outputs(T* plane, const float (&acc)[PAIRS][BLOCKS][4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  constexpr int WHOLE_PAIRS = PAIRS - ALONE;
  if constexpr (MATRICES) {
    T* to = plane + lane % 8 * STRAND + lane / 8 % 2 * PW + lane / 16 * 8;  // as read_rows has them
#pragma unroll
    for (int pair = 0; pair < WHOLE_PAIRS; pair++)
#pragma unroll
      for (int j = 0; j < BLOCKS; j += 2) {
        const float(&one)[4] = acc[pair][j];
        const float(&other)[4] = acc[pair][j + 1 < BLOCKS ? j + 1 : j];
        const u32 four[4] = {pack2<T>(one[0], one[1]), pack2<T>(one[2], one[3]), pack2<T>(other[0], other[1]),
                             pack2<T>(other[2], other[3])};
        if (j + 1 < BLOCKS) stmatrix_x4_trans(to + 2 * pair * PW + 8 * j, four);
        else stmatrix_x2_trans(to + 2 * pair * PW + 8 * j, four[0], four[1]);
      }
  }
#pragma unroll
  for (int e = 0; e < 2; e++) {
    T* to = plane + (2 * t + e) * STRAND + g;
#pragma unroll
    for (int row = MATRICES ? 2 * WHOLE_PAIRS : 0; row < ROWS; row++)
#pragma unroll
      for (int j = 0; j < BLOCKS; j++)
        if (8 * j + 8 <= PW || 8 * j + g < TW)
          to[row * PW + 8 * j] = from_float<T>(ALONE && row == ROWS - 1 ? acc[row / 2][j / 2][j % 2 * 2 + e]
                                                                        : acc[row / 2][j][row % 2 * 2 + e]);
  }
}

// Sums of the outputs of the warp's channel, as squeeze-excite needs them: sums[image][channel]. Strands times a
// matrix of ones: a lane masks what stands beside the outputs, columns beyond the map or words beyond the
// strand, since that may be infinite.
__device__ __forceinline__ void sum_plane(float* sums, const T* plane, int image0, int channel, int n, int c) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const u32 ones = pack2<T>(1.f, 1.f);
  float acc[2][4] = {};                                  // every other product's, so that none waits for the last
  __syncwarp();
  const T* strand = plane + lane % 8 * STRAND;
  if constexpr (PW == TW) {
    constexpr int WHOLE = WORDS / 4;                     // matrices of four words
#pragma unroll
    for (int i = 0; i < WHOLE / 4; i++) {
      u32 a[4];
      ldmatrix_x4(a, strand + 32 * i + lane / 8 * 8);
      mma_16816<T>(acc[i % 2], a, ones, ones);
    }
#pragma unroll
    for (int i = WHOLE / 4 * 4; i < (WORDS + 3) / 4; i++) {
      u32 a[2];
      ldmatrix_x2(a, strand + 8 * i);
      mma_1688<T>(acc[i % 2], i < WHOLE || t < WORDS % 4 ? a[0] : 0u, 0u, ones);
    }
  } else {
    constexpr int LAST = TW - 8 * (BLOCKS - 1);          // columns of a row's last block
    const u32 mask = 2 * t + 2 <= LAST ? 0xffffffffu : 2 * t < LAST ? 0xffffu : 0u;
    const int k = lane / 8 % 2;                          // as read_rows has them
#pragma unroll
    for (int row = 0; row < ROWS; row += 2) {
      const T* from = row + 1 < ROWS || k == 0 ? strand + (row + k) * PW : zeros();
#pragma unroll
      for (int j = 0; j + 1 < BLOCKS; j += 2) {
        u32 a[4];
        ldmatrix_x4(a, from + 8 * j + lane / 16 * 8);
        if (j + 2 == BLOCKS) a[2] &= mask, a[3] &= mask;
        mma_16816<T>(acc[(row + j) / 2 % 2], a, ones, ones);
      }
      if constexpr (BLOCKS % 2 == 1) {
        u32 a[2];
        ldmatrix_x2(a, from + 8 * (BLOCKS - 1));
        mma_1688<T>(acc[(row + BLOCKS - 1) / 2 % 2], a[0] & mask, a[1] & mask, ones);
      }
    }
  }
  float sum = acc[0][0] + acc[0][2] + (acc[1][0] + acc[1][2]);  // of strand g, in each of its four lanes
#pragma unroll
  for (int mask = 4; mask < 4 * GROUPS; mask *= 2) sum += shfl_xor(sum, mask);
  if (lane % (4 * GROUPS) == 0 && image0 + g / GROUPS < n) sums[(i64)(image0 + g / GROUPS) * c + channel] = sum;
}
