// What digest.cu and digest_wide.cu share. Defined at compile time, besides what terms.cuh needs: HEIGHT and WIDTH of
// the maps; TAP_PARTS, bf16 numbers that a tap of type T is the sum of.

// a warp for each row of the window; the products of two rows
constexpr int THREADS = 32 * WINDOW, CELLS = WIDTH * WIDTH;
constexpr int APART = WINDOW < HEIGHT ? WINDOW : HEIGHT;      // distances of rows that meet

// An integral image of [HEIGHT + 1][WIDTH + 1], made by the whole block.
__device__ __forceinline__ void integrate(float* image, const float* __restrict__ map) {
  constexpr int P = WIDTH + 1;
#pragma unroll 1
  for (int i = threadIdx.x; i < (HEIGHT + 1) * P; i += THREADS)
    image[i] = i >= P && i % P ? __ldg(map + (i / P - 1) * WIDTH + i % P - 1) : 0.f;
  __syncthreads();
  for (int u = threadIdx.x; u <= HEIGHT; u += THREADS)
    for (int v = 0; v < WIDTH; v++) image[u * P + v + 1] += image[u * P + v];
  __syncthreads();
  for (int v = threadIdx.x; v <= WIDTH; v += THREADS)
    for (int u = 0; u < HEIGHT; u++) image[(u + 1) * P + v] += image[u * P + v];
  __syncthreads();
}

// The sum over the cells that a tap sees, `tap` cells off the centre, from an integral
// image of [HEIGHT + 1][WIDTH + 1].
__device__ __forceinline__ float seen_by(const float* image, int row, int column) {
  const int top = min(max(row, 0), HEIGHT), bottom = max(min(HEIGHT + row, HEIGHT), 0),
            left = min(max(column, 0), WIDTH), right = max(min(WIDTH + column, WIDTH), 0);
  if (top >= bottom || left >= right) return 0.f;
  constexpr int P = WIDTH + 1;
  return image[bottom * P + right] - image[top * P + right] - image[bottom * P + left] + image[top * P + left];
}

// Two numbers in parts that sum up to them, rounded to eight bits each.
template <int PARTS> __device__ __forceinline__ void split(u32 (&parts)[PARTS], float low, float high) {
#pragma unroll
  for (int p = 0; p < PARTS; p++) {
    parts[p] = pack2<bf16>(low, high);
    low -= lo_float<bf16>(parts[p]), high -= hi_float<bf16>(parts[p]);
  }
}

__device__ __forceinline__ u32& word(uint4& v, int e) { return e == 0 ? v.x : e == 1 ? v.y : e == 2 ? v.z : v.w; }
