// From channels-last cells, [cells, c], to groups of channels, [c / GROUP, cells, GROUP], GROUP channels being 32 bytes. A block of few channels then reads whole
// lines of memory where it would have had a request for every cell, and requests are what bounds it.
//
// Defined from outside: T; THREADS; CELLS, of a block; GROUP.

extern __shared__ unsigned char smem[];

extern "C" __global__ void __launch_bounds__(THREADS) regroup(const uint4* __restrict__ x, uint4* __restrict__ to, i64 cells, int c) {
  constexpr int PART = GROUP / 8;                         // sixteens of bytes
  uint4* held = (uint4*)smem;                            // [CELLS][c / 8 + PART]; rows begin in different banks
  const int parts = c / 8, pitch = parts + PART;
  const i64 first = (i64)blockIdx.x * CELLS;
  for (int i = threadIdx.x; i < CELLS * parts; i += THREADS)
    if (first + i / parts < cells) held[i / parts * pitch + i % parts] = __ldg(x + first * parts + i);
  __syncthreads();
  for (int i = threadIdx.x; i < CELLS * parts; i += THREADS) {
    const int group = i / (CELLS * PART), cell = i / PART % CELLS;
    if (first + cell < cells) to[(group * cells + first) * PART + i % (CELLS * PART)] = held[cell * pitch + group * PART + i % PART];
  }
}
