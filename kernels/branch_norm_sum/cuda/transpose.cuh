// tests/kernels/emulation.h has the same name for the CPU.

// An 8x8 matrix as a fragment, transposed.
__device__ __forceinline__ u32 transposed(u32 v) {
  u32 r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}
