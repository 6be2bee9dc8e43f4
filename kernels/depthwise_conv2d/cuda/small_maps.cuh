// Sixteen channels of eight images of maps of up to eight rows and columns, of either layout, to shared memory by the
// copy engine, and from there to planes: for small_maps.cu and small_maps_gradient.cu, Hopper and later.
//
// A plane is one channel: [row][image][column]. A stage has what the copy engine brings: channels-last cell by cell,
// eight cells to a row, of which a transposed 8x8 matrix is a row of eight channels' planes; contiguous map by map.
//
// Defined at compile time: T, KH, KW, TH and TW (rows and columns of a map), LAST (channels last).

extern __shared__ unsigned char smem[];

constexpr int CB = 16, IMAGES = 8, TAPS = KH * KW, UP = KH / 2;
// elements; of a channel, four rows at a time: eight channels use all banks
constexpr int MATRIX = 64, PLANE = (TH + 3) / 4 * 4 * MATRIX + 8;
constexpr int MAPS = CB * TH * TW, PITCH = MAPS + 8;     // contiguous: of an image's channels; from image to image
constexpr int STAGE = LAST ? IMAGES * TH * 8 * CB : IMAGES * PITCH;

#if LAST
using Source = TensorMap;
using Result = TensorMap;
__device__ __forceinline__ void prepare(const TensorMap& map) { fetch_map(map); }
#else
using Source = const T*;
using Result = T*;
__device__ __forceinline__ void prepare(const T*) {}
#endif

// One image of a stage, or channels-last all of them with the first.
__device__ __forceinline__ void order_image(T* stage, const Source& x, int image, int image0, int channel0, int n,
                                            int c, u64* full) {
#if LAST
  if (image == 0) tensor_copy<TH, 8, 2, IMAGES>(stage, x, channel0, 0, 0, image0, full);
#else
  if (image0 + image < n)
    bulk_copy(stage + image * PITCH, x + ((i64)(image0 + image) * c + channel0) * (TH * TW),
              min(CB, c - channel0) * TH * TW * 2, full);
#endif
}
__device__ __forceinline__ u32 bytes_of_stage(int image0, int channel0, int n, int c) {
  return LAST ? STAGE * 2 : min(IMAGES, n - image0) * min(CB, c - channel0) * TH * TW * 2;
}

// Channels last: a warp takes an image, two of its rows at a time, of each the two octets of channels. Where a lane's
// row of those matrices lies: cell `lane % 8`; of four cells in eight the octets change places.
__device__ __forceinline__ int cells_of(int image, int rows) {
  const int lane = threadIdx.x % 32, cell = lane % 8, row = min(rows + lane / 16, TH - 1);
  return ((image * TH + row) * 8 + cell) * CB + (lane / 8 % 2 ^ cell / 4) * 8;
}
// In planes a lane finds two columns of channel g of the first octet.
__device__ __forceinline__ int columns_of(int image) {
  const int lane = threadIdx.x % 32;
  return lane / 4 * PLANE + image * 8 + lane % 4 * 2;
}
__device__ __forceinline__ void spread_cells(T* planes, const T* stage, int image) {
  u32* to = (u32*)(planes + columns_of(image));
  u32 r[(TH + 1) / 2][4];
#pragma unroll
  for (int pair = 0; pair < (TH + 1) / 2; pair++) ldmatrix_x4_trans(r[pair], stage + cells_of(image, 2 * pair));
#pragma unroll
  for (int pair = 0; pair < (TH + 1) / 2; pair++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (2 * pair + i / 2 < TH) to[(i % 2 * 8 * PLANE + (2 * pair + i / 2) * MATRIX) / 2] = r[pair][i];
}
__device__ __forceinline__ void gather_cells(T* stage, const T* planes, int image) {
  const u32* from = (const u32*)(planes + columns_of(image));
  u32 r[(TH + 1) / 2][4];
#pragma unroll
  for (int pair = 0; pair < (TH + 1) / 2; pair++)
#pragma unroll
    for (int i = 0; i < 4; i++) r[pair][i] = from[(i % 2 * 8 * PLANE + min(2 * pair + i / 2, TH - 1) * MATRIX) / 2];
#pragma unroll
  for (int pair = 0; pair < (TH + 1) / 2; pair++) {
    if (2 * pair + 1 < TH) stmatrix_x4_trans(stage + cells_of(image, 2 * pair), r[pair]);
    else stmatrix_x2_trans(stage + cells_of(image, 2 * pair), r[pair][0], r[pair][1]);
  }
}

// Contiguous: a warp takes an image, a lane every other row of a channel, whose columns begin in either half of a word.
__device__ __forceinline__ void spread_maps(T* planes, const T* stage, int image) {
  const int lane = threadIdx.x % 32, channel = lane % CB, first = channel * TH * TW + lane / CB * TW;
  const bool odd = first % 2;
  constexpr int WORDS = (TW + 1) / 2;
  const u32* from = (const u32*)(stage + image * PITCH) + first / 2;
  T* to = planes + channel * PLANE + lane / CB * MATRIX + image * 8;
#pragma unroll
  for (int row = 0; row < TH; row += 2, from += TW, to += 2 * MATRIX) {
    if (row + 1 == TH && lane >= CB) break;
    u32 raw[WORDS + 1], out[4] = {};
#pragma unroll
    for (int i = 0; i < WORDS; i++) raw[i] = from[i];
    raw[WORDS] = 0u;
#pragma unroll
    for (int i = 0; i < WORDS; i++)
      out[i] = TW % 2 == 0     ? raw[i]
               : i + 1 < WORDS ? prmt(raw[i], raw[i + 1], odd ? 0x5432 : 0x3210)
                               : prmt(raw[i], 0u, odd ? 0x4432 : 0x4410);
    *(uint4*)to = make_uint4(out[0], out[1], out[2], out[3]);
  }
}

__device__ __forceinline__ void spread(T* planes, const T* stage, int image) {
  if (LAST) spread_cells(planes, stage, image);
  else spread_maps(planes, stage, image);
}

// An image that is not there.
__device__ __forceinline__ void clear_image(T* planes, int image) {
  for (int i = threadIdx.x % 32; i < CB * TH; i += 32)
    *(uint4*)(planes + i / TH * PLANE + i % TH * MATRIX + image * 8) = make_uint4(0, 0, 0, 0);
}
