// The weight gradient of a depthwise 3x3 convolution on tensor cores, for octets.cu (parts of the sums) and
// octets_clusters.cu (all of them): what lies where in shared memory, and the products.
//
// For eight channels, the taps are sums over cells of the diagonals of X^T G: an eighth of what is multiplied, but
// hardly an instruction beside the copies. The matrix rows are eight channels at one tap and at the tap beside it, the
// depth are eight cells of each of two lines, octets of columns that a warp walks down.
//
// A row of a strip is PX cells of the input, from the one to the left on, and a multiple of eight, so that from row to
// row only a constant is added to an address. Where the gradient has a column of zeros at its right, PX is no more than
// its columns: after a row's end comes the column to the left of the next one, of zeros, and what comes after that
// meets zeros of the gradient.
//
// Defined at compile time: T, G (octets of channels of a block), SLOTS strips of TH rows by NO octets of columns in a
// place, PX, WHOLE (strips are maps, so that no row above or below is wanted), WARPS.

extern __shared__ unsigned char smem[];

// cells of a row of the gradient; rows of the input
constexpr int PG = 8 * NO, ABOVE = WHOLE ? 0 : 1, ROWS = TH + 2 * ABOVE;
// of a slot; of zeros after the last slot of the input
constexpr int CELLS_X = ROWS * PX, CELLS_G = TH * PG, BEHIND = PX > PG ? 0 : 8;
// units of 16 bytes: strips of the input, zeros, strips of the gradient
constexpr int PLACE = (SLOTS * (CELLS_X + CELLS_G) + BEHIND) * G;
// warps that share the lines of eight channels
constexpr int LINES = SLOTS * NO, PAIRS = (LINES + 1) / 2, SHARERS = WARPS / G;
static_assert(PX % 8 == 0 && PX >= PG, "eight cells begin in the same banks in all rows");

// Where eight channels of a cell lie, in units of 16 bytes, as `tensor_copy` puts them.
__device__ __forceinline__ int unit(int cell, int octet) {
  return cell * G + (octet ^ (G == 8 ? cell & 7 : G == 4 ? cell >> 1 & 3 : G == 2 ? cell >> 2 & 1 : 0));
}

// Zeros after the input of each of so many places.
__device__ __forceinline__ void make_zeros(uint4* places, int count) {
  for (int i = threadIdx.x; i < count * BEHIND * G; i += 32 * WARPS)
    places[i / (8 * G) * PLACE + SLOTS * CELLS_X * G + i % (8 * G)] = make_uint4(0, 0, 0, 0);
}

// A warp's sums of eight channels: a lane holds two columns of row lane / 4, and of that eight further;
// one of them is on the diagonal.
struct Sums {
  // taps 0 and 1 of each kernel row; tap 2 of kernel rows 1 and 0, and of 2
  float d[3][4] = {}, e[2][4] = {};

  // Two lines of a place.
  __device__ __forceinline__ void add(const uint4* place, int pair, int octet) {
    const int lane = threadIdx.x % 32;
    const uint4 *in = place, *grad = in + (SLOTS * CELLS_X + BEHIND) * G;
    // lines of a lane's address, in loads of 4 and of 2
    const int four = min(2 * pair + lane / 16, LINES - 1), two = min(2 * pair + lane / 8 % 2, LINES - 1);
    // taps 0 and 1
    const uint4* near_at = in + unit(four / NO * CELLS_X + four % NO * 8 + lane % 8 + lane / 8 % 2, octet);
    const uint4* far_at = in + unit(two / NO * CELLS_X + two % NO * 8 + lane % 8 + 2, octet);  // tap 2
    const uint4* grad_at = grad + unit(two / NO * CELLS_G + two % NO * 8 + lane % 8, octet);
    const bool lonely = 2 * pair + 1 == LINES;
    // of input rows r, r + 1; r - 1, r, r + 1; of the gradient's rows r + 1 to r - 2
    u32 near[2][4], far[3][2] = {}, g[4][2] = {};
    const auto load = [&](int r) {                       // input row r - 1 of the strip and the gradient's row r
      if (r >= 1 - ABOVE && r <= TH + ABOVE) {
        ldmatrix_x4_trans(near[r % 2], near_at + (r - 1 + ABOVE) * PX * G);
        ldmatrix_x2_trans(far[r % 3], far_at + (r - 1 + ABOVE) * PX * G);
      }
      if (r < TH) ldmatrix_x2_trans(g[r % 4], grad_at + r * PG * G);
      if (lonely) g[r % 4][1] = 0;
    };
    if (WHOLE) load(0);
    load(1 - ABOVE);
#pragma unroll
    for (int r = 1 - ABOVE; r <= TH + ABOVE; r++) {      // input row r - 1 meets the gradient's rows r - kh
      if (r + 1 <= TH + ABOVE) load(r + 1);
#pragma unroll
      for (int kh = 0; kh < 3; kh++)
        if (r - kh >= 0 && r - kh < TH) mma_16816<T>(d[kh], near[r % 2], g[(r - kh) % 4][0], g[(r - kh) % 4][1]);
      const u32* now = far[r % 3];
      const u32* before = far[(r + 2) % 3];
      const u32 tap2[4] = {now[0], before[0], now[1], before[1]};
      if (r >= 1 && r - 1 < TH) mma_16816<T>(e[0], tap2, g[(r - 1) % 4][0], g[(r - 1) % 4][1]);
      if (r >= 2) mma_16816<T>(e[1], tap2, g[(r - 2) % 4][0], g[(r - 2) % 4][1]);
    }
  }

  // The taps of the eight channels, [channel][3][3].
  __device__ __forceinline__ void put(float* taps) const {
    const int lane = threadIdx.x % 32, row = lane / 4;
    const bool odd = row % 2;
    if (lane % 4 != row / 2) return;
    float* to = taps + row * 9;
#pragma unroll
    for (int kh = 0; kh < 3; kh++) to[3 * kh] = odd ? d[kh][1] : d[kh][0], to[3 * kh + 1] = odd ? d[kh][3] : d[kh][2];
    to[2] = odd ? e[0][3] : e[0][2], to[5] = odd ? e[0][1] : e[0][0], to[8] = odd ? e[1][1] : e[1][0];
  }
};
