// Between device memory and shared memory, for images.cu and depth.cu: small channels-last maps, eight strands of rows
// side by side. A strand is an image, or one of the GROUPS parts of an image that is too large for that.
//
// A plane is one channel: [row of a strand][block of eight columns][strand][column], so that a matrix of eight
// strands by eight columns lies in one piece and uses all banks. Where strands are parts of an image there is
// room for PAD more of them around each image, which hold zeros: what lies above or below a strand's rows is then
// found at its neighbours' places. Planes stand eight banks further for each quad of channels, so that a warp's
// stores use all banks as well.
//
// Defined at compile time: T, KH, KW, TH and TW (rows and columns of a map), GROUPS, WARPS, AHEAD (whether the next
// images are loaded while some are multiplied).

extern __shared__ unsigned char smem[];

constexpr int CB = 16, THREADS = 32 * WARPS;             // channels of a thread block: a sector of memory
// blocks of columns; that meet
constexpr int BLOCKS = (TW + 7) / 8, REACH = (KW / 2 + 7) / 8, FAR = REACH < BLOCKS - 1 ? REACH : BLOCKS - 1;
constexpr int PIECES = 2 * FAR + 1;
// of a strand
constexpr int ROWS = (TH + GROUPS - 1) / GROUPS, IMAGES = 8 / GROUPS,
              PAD = GROUPS == 1 ? 0 : (KH / 2 + ROWS - 1) / ROWS;
// elements; of a channel; of all
constexpr int MATRIX = 8 * (8 + PAD * (IMAGES + 1)), PLANE = MATRIX * ROWS * BLOCKS, PLANES = CB * PLANE + CB / 4 * 16;

// What a thread moves at a time: four channels of two columns. A warp takes a sector of channels of a block of two
// strands, row by row, every PHASES-th of them; all but the row is the same in each of its turns.
constexpr int PHASES = WARPS / (4 * BLOCKS), TURNS = (ROWS + PHASES - 1) / PHASES;
static_assert(WARPS % (4 * BLOCKS) == 0, "four pairs of strands, for each block of columns");

__device__ __forceinline__ int plane_of(int channel) { return channel * PLANE + channel / 4 * 16; }

__device__ __forceinline__ int slot_of(int strand) { return PAD + strand + strand / GROUPS * PAD; }

struct Unit {
  int quad, column, strand, row;

  __device__ __forceinline__ Unit() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    quad = lane % 4, column = warp / 4 % BLOCKS * 8 + lane / 4 % 4 * 2, strand = warp % 4 * 2 + lane / 16,
    row = warp / (4 * BLOCKS);
  }
  __device__ __forceinline__ int image() const { return strand / GROUPS; }
  __device__ __forceinline__ int map_row() const { return strand % GROUPS * ROWS + row; }
  // Of the first turn; one turn on, it lies STEP elements further.
  __device__ __forceinline__ int place() const {
    return plane_of(4 * quad) + (row * BLOCKS + column / 8) * MATRIX + slot_of(strand) * 8 + column % 8;
  }
  __device__ __forceinline__ i64 cell(int image0) const {
    return ((i64)(image0 + image()) * TH + map_row()) * TW + column;
  }
};
constexpr int STEP = PHASES * BLOCKS * MATRIX;

// Eight strands of `x` to planes. What is on its way stands in registers, or, where it has to wait for long, in the
// thread's own places of shared memory (AHEAD).
struct Loader {
  uint2 held[AHEAD ? 1 : TURNS][2];
  uint2* waiting;                                        // [TURNS][2][THREADS]

  __device__ __forceinline__ void fetch(const T* __restrict__ x, int image0, int channel0, int n, int c) {
    const Unit unit;
    const bool there = image0 + unit.image() < n && channel0 + 4 * unit.quad < c;
    const bool left = there && unit.column < TW, right = there && unit.column + 1 < TW;
    const T* from = x + unit.cell(image0) * c + channel0 + 4 * unit.quad;
#pragma unroll
    for (int i = 0; i < TURNS; i++, from += PHASES * TW * c) {
      const bool row = unit.row + i * PHASES < ROWS && unit.map_row() + i * PHASES < TH;
#if AHEAD
      cp_async_8(waiting + 2 * i * THREADS + threadIdx.x, left && row ? from : x, left && row);
      cp_async_8(waiting + (2 * i + 1) * THREADS + threadIdx.x, right && row ? from + c : x, right && row);
#else
      held[i][0] = left && row ? __ldg((const uint2*)from) : make_uint2(0, 0);
      held[i][1] = right && row ? __ldg((const uint2*)(from + c)) : make_uint2(0, 0);
#endif
    }
    if (AHEAD) cp_async_commit();
  }

  __device__ __forceinline__ void commit(T* planes) const {
    const Unit unit;
    u32* to = (u32*)(planes + unit.place());
#pragma unroll
    // a word holds two channels of one column; a plane needs two columns of one channel
    for (int i = 0; i < TURNS; i++, to += STEP / 2) {
      if (unit.row + i * PHASES >= ROWS) break;
      const uint2 a = AHEAD ? waiting[2 * i * THREADS + threadIdx.x] : held[AHEAD ? 0 : i][0];
      const uint2 b = AHEAD ? waiting[(2 * i + 1) * THREADS + threadIdx.x] : held[AHEAD ? 0 : i][1];
      to[0] = prmt(a.x, b.x, 0x5410);
      to[PLANE / 2] = prmt(a.x, b.x, 0x7632);
      to[2 * (PLANE / 2)] = prmt(a.y, b.y, 0x5410);
      to[3 * (PLANE / 2)] = prmt(a.y, b.y, 0x7632);
    }
  }
};
constexpr int WAITING = AHEAD ? TURNS * 2 * THREADS * 4 : 0;  // elements

// The planes of eight strands to `y`.
__device__ __forceinline__ void store_planes(T* __restrict__ y, const T* planes, int image0, int channel0, int n,
                                             int c) {
  const Unit unit;
  if (image0 + unit.image() >= n || channel0 + 4 * unit.quad >= c || unit.column >= TW) return;
  const u32* from = (const u32*)(planes + unit.place());
  T* to = y + unit.cell(image0) * c + channel0 + 4 * unit.quad;
#pragma unroll
  for (int i = 0; i < TURNS; i++, from += STEP / 2, to += PHASES * TW * c) {
    if (unit.row + i * PHASES >= ROWS || unit.map_row() + i * PHASES >= TH) break;
    const u32 a = from[0], b = from[PLANE / 2], d = from[2 * (PLANE / 2)], e = from[3 * (PLANE / 2)];
    *(uint2*)to = make_uint2(prmt(a, b, 0x5410), prmt(d, e, 0x5410));
    if (unit.column + 1 < TW) *(uint2*)(to + c) = make_uint2(prmt(a, b, 0x7632), prmt(d, e, 0x7632));
  }
}
