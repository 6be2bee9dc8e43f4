// Between device memory and shared memory, for images.cu and depth.cu: small channels-last maps, eight images of them side by side.
//
// A plane is one channel of some eights of images: [set][row][block of eight columns][image][column], so that a matrix of eight images by
// eight columns lies in one piece and meets all banks. Images stand two places further for each quad of channels: then the stores of a warp
// meet all banks as well.
//
// Defined from outside: T, TH and TW (rows and columns of a map, up to 16), WARPS, TOGETHER (units of a thread that are on their way at once).

extern __shared__ unsigned char smem[];

constexpr int CB = 16, THREADS = 32 * WARPS;             // channels of a block of threads: a sector of memory
constexpr int BLOCKS = (TW + 7) / 8, FAR = BLOCKS - 1, PIECES = 2 * FAR + 1;  // of eight columns; from one to the other
constexpr int MATRICES = TH * BLOCKS, SET = 64 * MATRICES;  // of eight images; their elements

// What a thread moves at a time: four channels of two columns. A warp takes a sector of channels of a block of two images.
struct Unit { int quad, column, image, matrix; };

__device__ __forceinline__ Unit unit_of(int turn) {
  const int lane = threadIdx.x % 32, matrix = turn % MATRICES;
  return {lane % 4, matrix % BLOCKS * 8 + lane / 4 % 4 * 2, turn / MATRICES * 2 + lane / 16, matrix};
}

__device__ __forceinline__ int slot_of(int image, int channel) { return (image + channel / 4 * 2) % 8; }
__device__ __forceinline__ int image_of(int slot, int channel) { return (slot - channel / 4 * 2) & 7; }
__device__ __forceinline__ int place_of(const Unit& unit) {
  return unit.image / 8 * SET + unit.matrix * 64 + slot_of(unit.image, 4 * unit.quad) * 8 + unit.column % 8;
}
__device__ __forceinline__ i64 cell_of(const Unit& unit, int image0) { return ((i64)(image0 + unit.image) * TH + unit.matrix / BLOCKS) * TW + unit.column; }

// The planes of `x`, and those of `other` behind them if there are two tensors.
template <int TENSORS, int OF_EIGHT> __device__ __forceinline__ void load_planes(T* planes, const T* __restrict__ x, const T* __restrict__ other, int image0, int channel0, int n, int c) {
  constexpr int TURNS = OF_EIGHT * 4 * MATRICES, ALL = TENSORS * TURNS, PLANE = OF_EIGHT * SET;  // turns of a warp that takes all of a tensor
#pragma unroll 1
  for (int first = threadIdx.x / 32; first < ALL; first += TOGETHER * WARPS) {
    uint2 held[TOGETHER][2];
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
      const int turn = first + i * WARPS;
      const Unit unit = unit_of(turn % TURNS);
      const bool there = turn < ALL && image0 + unit.image < n && channel0 + 4 * unit.quad < c;
      const T* from = (turn < TURNS ? x : other) + cell_of(unit, image0) * c + channel0 + 4 * unit.quad;
      held[i][0] = there && unit.column < TW ? __ldg((const uint2*)from) : make_uint2(0, 0);
      held[i][1] = there && unit.column + 1 < TW ? __ldg((const uint2*)(from + c)) : make_uint2(0, 0);
    }
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {                 // a word holds two channels of one column; a plane wants two columns of one channel
      const int turn = first + i * WARPS;
      if (turn >= ALL) break;
      const Unit unit = unit_of(turn % TURNS);
      u32* to = (u32*)(planes + (turn / TURNS * CB + 4 * unit.quad) * PLANE + place_of(unit));
      to[0] = prmt(held[i][0].x, held[i][1].x, 0x5410);
      to[PLANE / 2] = prmt(held[i][0].x, held[i][1].x, 0x7632);
      to[2 * (PLANE / 2)] = prmt(held[i][0].y, held[i][1].y, 0x5410);
      to[3 * (PLANE / 2)] = prmt(held[i][0].y, held[i][1].y, 0x7632);
    }
  }
}

// The planes of eight images to `y`.
__device__ __forceinline__ void store_planes(T* __restrict__ y, const T* planes, int image0, int channel0, int n, int c) {
#pragma unroll 4
  for (int turn = threadIdx.x / 32; turn < 4 * MATRICES; turn += WARPS) {
    const Unit unit = unit_of(turn);
    if (image0 + unit.image >= n || channel0 + 4 * unit.quad >= c || unit.column >= TW) continue;
    const u32* from = (const u32*)(planes + 4 * unit.quad * SET + place_of(unit));
    const u32 a = from[0], b = from[SET / 2], d = from[2 * (SET / 2)], e = from[3 * (SET / 2)];
    T* to = y + cell_of(unit, image0) * c + channel0 + 4 * unit.quad;
    *(uint2*)to = make_uint2(prmt(a, b, 0x5410), prmt(d, e, 0x5410));
    if (unit.column + 1 < TW) *(uint2*)(to + c) = make_uint2(prmt(a, b, 0x7632), prmt(d, e, 0x7632));
  }
}

// Where a lane finds its row of four matrices from `first` on; what lies behind the last is not asked for.
__device__ __forceinline__ const T* matrices_from(const T* set, int first) {
  const int lane = threadIdx.x % 32;
  return set + min(first + lane / 8, MATRICES - 1) * 64 + lane % 8 * 8;
}
