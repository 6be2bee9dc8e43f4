// What digest.cu and digest_wide.cu share. Defined from outside: T, W, TERMS, KERNELS, DILATIONS as for branches.cu; HEIGHT and WIDTH of the maps; TAP_PARTS, bf16
// numbers that a tap of type T is the sum of.

extern __shared__ unsigned char smem[];

constexpr int KERNEL[] = KERNELS, DILATION[] = DILATIONS, WINDOW = KERNEL[0], REACH = WINDOW / 2, THREADS = 32 * WINDOW;
constexpr int CELLS = WIDTH * WIDTH, APART = WINDOW < HEIGHT ? WINDOW : HEIGHT;  // products of two rows; distances of rows that meet

__host__ __device__ constexpr int taps_before(int term) {
  int taps = 0;
  for (int t = 0; t < term; t++) taps += KERNEL[t] * KERNEL[t];
  return taps;
}
__host__ __device__ constexpr int rows_before(int term) {
  int rows = 0;
  for (int t = 0; t < term; t++) rows += KERNEL[t];
  return rows;
}
constexpr int ALL_TAPS = taps_before(TERMS), ALL_ROWS = rows_before(TERMS);

// An integral image of [HEIGHT + 1][WIDTH + 1], made by the whole block.
__device__ __forceinline__ void integrate(float* image, const float* __restrict__ map) {
  for (int u = threadIdx.x; u <= HEIGHT; u += THREADS) {
    float *to = image + u * (WIDTH + 1), sum = 0.f;
    to[0] = 0.f;
#pragma unroll
    for (int v = 0; v < WIDTH; v++) to[v + 1] = sum += u ? __ldg(map + (u - 1) * WIDTH + v) : 0.f;
  }
  __syncthreads();
  for (int v = threadIdx.x; v <= WIDTH; v += THREADS)
#pragma unroll
    for (int u = 0; u < HEIGHT; u++) image[(u + 1) * (WIDTH + 1) + v] += image[u * (WIDTH + 1) + v];
  __syncthreads();
}

// The sum over the cells that a tap sees, `tap` cells off the centre, from an integral image of [HEIGHT + 1][WIDTH + 1].
__device__ __forceinline__ float seen_by(const float* image, int row, int column) {
  const int top = min(max(row, 0), HEIGHT), bottom = max(min(HEIGHT + row, HEIGHT), 0), left = min(max(column, 0), WIDTH), right = max(min(WIDTH + column, WIDTH), 0);
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
