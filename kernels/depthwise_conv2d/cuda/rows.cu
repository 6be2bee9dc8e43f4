// Depthwise 3x3 convolution on channels-last maps by the copy engine of Hopper, forward (with flipped taps: input
// gradient), for maps whose rows are long.
//
// A block takes all channels of `groups` times CW columns, which lie in one piece in each row, and walks down the rows
// of one image after the other. They are copied to a ring in shared memory, DEPTH stages of STAGE rows ahead: no
// register waits for memory. A thread owns four channels of CW columns and reads each row once. Below each image there
// is a row of zeros, which serves the one above and the one below.
//
// Defined at compile time: T, CW, TH (rows of which sums are taken, and in which a block's share is counted),
// DEPTH, MAX_THREADS, MIN_BLOCKS.

extern __shared__ unsigned char smem[];

// rows that are waited for together: as many as take turns in registers
constexpr int STAGE = 3;

// Where part `part` of `parts` begins, of `all` in parts that differ by one at most.
__device__ __forceinline__ int begin_of(int part, int parts, int all) {
  return all / parts * part + min(part, all % parts);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
    forward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
            float* __restrict__ sums, int n, int c, int h, int width, int flip, int groups, int splits) {
  const int quads = c / CH, pieces = (width + CW * groups - 1) / (CW * groups), strips = (h + TH - 1) / TH;
  const int piece = blockIdx.x % pieces, split = blockIdx.x / pieces, col0 = piece * CW * groups;
  const int quad = threadIdx.x % quads, group = threadIdx.x / quads, channel = quad * CH, col = col0 + group * CW;
  const bool there = group < groups && col < width;
  // From strip to strip, of all images; with the rows of zeros, h + 1 an image. The row before the first and that
  // after the last are read too.
  const auto row_of = [&](int unit) { return unit / strips * (h + 1) + unit % strips * TH; };
  const int last_unit = begin_of(split + 1, splits, n * strips);
  const int begin = row_of(begin_of(split, splits, n * strips)), first = max(begin - 1, 0);
  const int count = row_of(last_unit) - (last_unit % strips == 0) + 1 - first, stages = (count + STAGE - 1) / STAGE;
  // A row of the ring has a column more at each side than the piece; what is outside of the map
  // is zeros that no copy touches.
  const int low = max(col0 - 1, 0), pitch = (CW * groups + 2) * c, from = (low - col0 + 1) * c,
            elements = (min(col0 + CW * groups + 1, width) - low) * c;
  T* ring = (T*)smem;                                    // [DEPTH][STAGE][columns + 2][c]
  float* scratch = (float*)(ring + DEPTH * STAGE * pitch);  // [groups][c]
  u64* full = (u64*)(scratch + groups * c);              // [DEPTH]
  for (int i = 0; i < DEPTH * STAGE; i++)
    for (int u = 8 * threadIdx.x; u < pitch; u += 8 * blockDim.x)
      if (u < from || u >= from + elements) *(uint4*)(ring + i * pitch + u) = make_uint4(0, 0, 0, 0);
  const auto order = [&](int s) {
    if (threadIdx.x != 0 || s >= stages) return;
    int image = (first + s * STAGE) / (h + 1), row = (first + s * STAGE) % (h + 1);
    const int rows = min(STAGE, count - s * STAGE), zeros = row + rows > h;
    expect_bytes(full + s % DEPTH, 2 * elements * (rows - zeros));
#pragma unroll 1
    for (int i = 0; i < rows; i++) {
      if (row < h)
        bulk_copy(ring + (s % DEPTH * STAGE + i) * pitch + from, x + (((i64)image * h + row) * width + low) * c,
                  2 * elements, full + s % DEPTH);
      if (row++ == h) row = 0, image++;
    }
  };
  if (threadIdx.x == 0)
    for (int s = 0; s < DEPTH; s++) make_bytes_barrier(full + s);
  __syncthreads();
  overlap_launches();
#pragma unroll 1
  for (int s = 0; s < DEPTH; s++) order(s);

  float weight[9][CH];
  Vector start = {};
  if (there) {
    read_taps(weight, w, channel, flip);
    if (bias) start = widened(__ldg((const uint2*)(bias + channel)));
  }
  Vector acc[3][CW];                                     // of output rows r - 1, r, r + 1
#pragma unroll
  for (int i = 0; i < 3; i++)
#pragma unroll
    for (int j = 0; j < CW; j++) acc[i][j] = start;
  Vector total = {};
  int row = first % (h + 1), image = first / (h + 1);
  T* to = y + (((i64)image * h + row - 1) * width + col) * c + channel;  // output of the row above
  const i64 line = (i64)width * c;
#pragma unroll 1
  for (int s = 0, r = 0; s < stages; s++) {
    wait_bytes(full + s % DEPTH, s / DEPTH);
#pragma unroll
    for (int i = 0; i < STAGE; i++, r++) {
      if (r >= count) break;
      if (there && row < h) {
        const uint2* at = (const uint2*)(ring + (s % DEPTH * STAGE + i) * pitch) + group * CW * quads + quad;
        Vector in[CW + 2];
#pragma unroll
        for (int j = 0; j < CW + 2; j++) in[j] = widened(at[j * quads]);
#pragma unroll
        for (int kh = 0; kh < 3; kh++)                   // meets output row r + 1 - kh
#pragma unroll
          for (int j = 0; j < CW; j++)
#pragma unroll
            for (int kw = 0; kw < 3; kw++)
#pragma unroll
              for (int k = 0; k < CH; k++) acc[(i + 4 - kh) % 3][j].v[k] += in[j + kw].v[k] * weight[3 * kh + kw][k];
      }
      Vector* done = acc[(i + 2) % 3];
      const bool mine = r > begin - first && row > 0;
      if (mine && there) {
#pragma unroll
        for (int j = 0; j < CW; j++)
          if (col + j < width) {
            const uint2 packed = make_uint2(pack2<T>(done[j].v[0], done[j].v[1]), pack2<T>(done[j].v[2], done[j].v[3]));
            *(uint2*)(to + j * c) = packed;
            if (sums) {
              const Vector rounded = widened(packed);
#pragma unroll
              for (int k = 0; k < CH; k++) total.v[k] += rounded.v[k];
            }
          }
      }
#pragma unroll
      for (int j = 0; j < CW; j++) done[j] = start;
      if (sums && mine && (row % TH == 0 || row == h)) {  // a strip is complete
        __syncthreads();
        if (group < groups)
          *(float4*)(scratch + threadIdx.x * CH) = make_float4(total.v[0], total.v[1], total.v[2], total.v[3]);
        total = Vector{};
        __syncthreads();
        for (int i = threadIdx.x; i < c; i += blockDim.x) {
          float sum = 0.f;
          for (int g = 0; g < groups; g++) sum += scratch[g * c + i];
          sums[(((i64)piece * strips + (row - 1) / TH) * n + image) * c + i] = sum;
        }
      }
      if (row == h) row = 0, image++;
      else row++, to += line;
    }
    __syncthreads();
    order(s + DEPTH);
  }
}
