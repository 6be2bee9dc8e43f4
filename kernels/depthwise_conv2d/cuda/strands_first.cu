// Depthwise convolution of contiguous maps in 16-bit types on tensor cores, forward (with flipped taps: input
// gradient), Hopper and later. strands.cuh says how.
//
// A plane is as it lies in memory, so that the copy engine brings and takes it, and no warp waits for another:
// each goes through its share of the channels of groups of IMAGES images, and while it multiplies one, the next is
// on its way to its other place.
//
// Defined at compile time: MIN_BLOCKS, SHARED_BYTES, and what strands.cuh needs.

// bytes
constexpr int MAP = TH * TW, WORDS_OF_TAPS = (TAPS + 2) / 2, PLACE = 2 * PLANE + (4 * WORDS_OF_TAPS + 15) / 16 * 16,
              PLACES = 3;
// what the copy engine can take; else lanes copy pairs of words
constexpr bool WHOLE = GAP == 0 && MAP % 8 == 0;
static_assert(TW % 2 == 0 && TH % GROUPS == 0 && (WHOLE || WORDS % 2 == 0), "copies are of 16 or 8 bytes");
static_assert(PW == TW && WARPS * PLACES * (PLACE + 8) + ZEROS == SHARED_BYTES, "gpu_tiles.py counts otherwise");

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    forward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
            float* __restrict__ sums, int n, int c, int, int, int flip) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, groups = (n + IMAGES - 1) / IMAGES, all = groups * c;
  // those that are larger by one lie on different multiprocessors
  const int shares = gridDim.x * WARPS, share = warp * gridDim.x + blockIdx.x;
  const int first = all / shares * share + min(share, all % shares), count = all / shares + (share < all % shares);
  unsigned char* places = smem + warp * PLACES * PLACE;
  u64* full = (u64*)(smem + WARPS * PLACES * PLACE) + warp * PLACES;
  if (lane == 0)
    for (int i = 0; i < PLACES; i++) make_bytes_barrier(full + i);
  make_zeros();
  __syncthreads();
  overlap_launches();
  const auto order = [&](int k) {
    if (k < count) {
      const int channel = (first + k) / groups, image0 = (first + k) % groups * IMAGES,
                images = min(IMAGES, n - image0);
      T *plane = (T*)(places + k % PLACES * PLACE), *taps = plane + PLANE;
      if (!WHOLE) {
        constexpr int PAIRS_OF_WORDS = GROUPS * WORDS / 2;
        for (int i = lane; i < images * PAIRS_OF_WORDS; i += 32) {
          const int strand = i / (WORDS / 2), image = i / PAIRS_OF_WORDS;
          cp_async_8(plane + 4 * i + strand * 2 * GAP,
                     x + ((i64)(image0 + image) * c + channel) * MAP + i % PAIRS_OF_WORDS * 4, true);
        }
      } else if (lane == 0) {
        wait_stores_read<1>();                           // the last but one, which stood in this place
        expect_bytes(full + k % PLACES, 2 * MAP * images);
#pragma unroll 1
        for (int i = 0; i < images; i++)
          bulk_copy(plane + i * MAP, x + ((i64)(image0 + i) * c + channel) * MAP, 2 * MAP, full + k % PLACES);
      }
      const i64 begin = (i64)channel * TAPS;             // taps begin in the first or in the second half of a word
      const int half = begin % 2;
      for (int i = lane; i < WORDS_OF_TAPS; i += 32) {
        const i64 at = begin - half + 2 * i;
        if (at + 1 < (i64)c * TAPS) cp_async_4(taps + 2 * i, w + at, true);
        else if (at < (i64)c * TAPS) taps[2 * i] = w[at];  // the very last is half a word
      }
    }
    cp_async_commit();
    __syncwarp();
  };
  order(0);
#pragma unroll 1
  for (int k = 0; k < count; k++) {
    order(k + 1);
    const int channel = (first + k) / groups, image0 = (first + k) % groups * IMAGES, images = min(IMAGES, n - image0);
    T *plane = (T*)(places + k % PLACES * PLACE), *taps = plane + PLANE + (i64)channel * TAPS % 2;
    const float start = bias ? to_float(bias[channel]) : 0.f;
    float acc[PAIRS][BLOCKS][4];
#pragma unroll
    for (int out = 0; out < PAIRS; out++)
#pragma unroll
      for (int j = 0; j < BLOCKS; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) acc[out][j][e] = start;
    cp_async_wait<1>();
    if (WHOLE) wait_bytes(full + k % PLACES, k / PLACES);
    __syncwarp();
    if (flip) convolve<true>(acc, plane, taps);
    else convolve<false>(acc, plane, taps);
    __syncwarp();
    put_outputs(plane, acc);
    if (sums) sum_plane(sums, plane, image0, channel, n, c);
    publish_shared();
    __syncwarp();
    if (!WHOLE) {
      constexpr int PAIRS_OF_WORDS = GROUPS * WORDS / 2;
      for (int i = lane; i < images * PAIRS_OF_WORDS; i += 32) {
        const int strand = i / (WORDS / 2), image = i / PAIRS_OF_WORDS;
        *(uint2*)(y + ((i64)(image0 + image) * c + channel) * MAP + i % PAIRS_OF_WORDS * 4) =
            *(const uint2*)(plane + 4 * i + strand * 2 * GAP);
      }
      __syncwarp();
    } else if (lane == 0) {
#pragma unroll 1
      for (int i = 0; i < images; i++)
        bulk_store(y + ((i64)(image0 + i) * c + channel) * MAP, plane + i * MAP, 2 * MAP);
      commit_stores();
    }
  }
  if (lane == 0) wait_stores_read<0>();
}
