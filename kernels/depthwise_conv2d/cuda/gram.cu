// Products of the cells of small maps, summed over the images: all that the statistics of branches need of a map, see
// branch_norms.cu. A block takes CB channels, a warp a channel, and of their maps two sets of rows, U and V of them;
// matrix rows are cells, and the products run over images, S at a time. Pairs of rows come once.
//
// Defined at compile time: what planes.cuh and fragments.cuh need.

constexpr int U_BLOCKS = 4, V_BLOCKS = 8, U = U_BLOCKS / NT, V = V_BLOCKS / NT;
// an odd step between images hits all banks
constexpr int PLANE_U = S * (U | 1) * PITCH, PLANE = PLANE_U + S * (V | 1) * PITCH;
using First = Loader<U, U | 1, 0, COLS_IN, PITCH, PLANE, ZERO, ZERO>;
using Second = Loader<V, V | 1, 0, COLS_IN, PITCH, PLANE, ZERO, ZERO>;

// Of the `rows` rows of the map from `top` on: gram, [c, pairs of rows u <= v, w, w], the sums of x[u, i] x[v, j];
// total, [c, rows, w], those of x, or null.
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    gram(const T* __restrict__ x, float* __restrict__ gram, float* __restrict__ total, int n, int c, int h, int w,
         int top, int rows) {
  T* planes = (T*)smem;
  const Map map = {n, c, h, w};
  const int lane = threadIdx.x % 32, groups = c / CB, channel0 = blockIdx.x % groups * CB,
            channel = channel0 + threadIdx.x / 32;
  int first = 0, left = blockIdx.x / groups;               // U first .. is the first set of rows, V second .. the other
  for (int count; left >= (count = (rows + V - 1) / V - first * U / V); first++) left -= count;
  const int row_u = first * U, second = row_u / V + left, row_v = second * V;
  float acc[U_BLOCKS / 2][V_BLOCKS][4], sums[U_BLOCKS / 2][4];
#pragma unroll
  for (int i = 0; i < U_BLOCKS / 2; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      sums[i][e] = 0.f;
#pragma unroll
      for (int j = 0; j < V_BLOCKS; j++) acc[i][j][e] = 0.f;
    }
  const T* plane = planes + threadIdx.x / 32 * PLANE + fragment_col(lane);
  const u32 ones = pack2<T>(1.f, 1.f);
  for (int job = 0; job < n; job += S) {
    First of_u;
    Second of_v;
    __syncthreads();
    of_u.load(planes, x, job, 1, map, channel0, top + row_u, 0);
    of_v.load(planes + PLANE_U, x, job, 1, map, channel0, top + row_v, 0);
    planes_loaded();
#pragma unroll 1
    for (int k = 0; k < S; k += 16) {
      Fragment f[U_BLOCKS], g[V_BLOCKS];
      const int image = k + fragment_row(lane);
#pragma unroll
      for (int u = 0; u < U; u++)
        load_fragments<NT, true>((Fragment(&)[NT])f[u * NT], plane + (image * (U | 1) + u) * PITCH);
#pragma unroll
      for (int v = 0; v < V; v++)
        load_fragments<NT, true>((Fragment(&)[NT])g[v * NT], plane + PLANE_U + (image * (V | 1) + v) * PITCH);
#pragma unroll
      for (int i = 0; i < U_BLOCKS / 2; i++) {
        const u32 a[4] = {f[2 * i][0], f[2 * i + 1][0], f[2 * i][1], f[2 * i + 1][1]};
#pragma unroll
        for (int j = 0; j < V_BLOCKS; j++) mma_16816<T>(acc[i][j], a, g[j][0], g[j][1]);
        mma_16816<T>(sums[i], a, ones, ones);
      }
    }
  }
  gram += (i64)channel * (rows * (rows + 1) / 2) * (w * w);
  if (total) total += (i64)channel * (rows * w);
#pragma unroll
  for (int i = 0; i < U_BLOCKS / 2; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int block = 2 * i + half, u = row_u + block / NT, left_col = block % NT * 8 + lane / 4;
      if (u >= rows || left_col >= w) continue;
      if (total && second == row_u / V && lane % 4 == 0) total[u * w + left_col] = sums[i][2 * half];
#pragma unroll
      for (int j = 0; j < V_BLOCKS; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int v = row_v + j / NT, col = j % NT * 8 + lane % 4 * 2 + e;
          if (v >= u && v < rows && col < w)
            gram[((u * rows - u * (u - 1) / 2 + v - u) * w + left_col) * w + col] = acc[i][j][2 * half + e];
        }
    }
}
