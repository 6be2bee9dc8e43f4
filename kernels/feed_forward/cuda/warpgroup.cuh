// Hopper's products of a whole warpgroup, both matrices in shared memory. tests/kernels/emulation.h has the same names for the CPU.
//
// A matrix is tiles of 64 elements of the depth: a row of a tile is 128 bytes, its eight 16-byte pieces exchanged by the row's last three
// bits (the hardware's 128-byte swizzle), and tiles begin at multiples of 1024 bytes.

// Where the hardware finds rows of a tile, from an element of the depth that is a multiple of 16 on.
__device__ __forceinline__ u64 tile_at(const void* rows) {
  return (u64)((shared_address(rows) & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
// What ordinary stores and copies left in shared memory, seen by the tensor cores after the next barrier.
__device__ __forceinline__ void show_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
template <int COUNT> __device__ __forceinline__ void keep(float (&d)[COUNT]) {  // in their registers until here
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// d (+)= a b^T: 64 rows by WIDE columns, depth 16. A lane holds d[4 j ...] of columns 8 j + 2 (lane % 4) and one more, in rows lane / 4 and 8 on, of
// its warp's 16.
template <class E, int WIDE> __device__ __forceinline__ void wgmma(float (&d)[WIDE / 2], u64 a, u64 b, bool add);
#define DEFINE_WGMMA(T, PTX)                                                                                                    \
  template <> __device__ __forceinline__ void wgmma<T, 80>(float (&d)[40], u64 a, u64 b, bool add) {                            \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %42, 0; wgmma.mma_async.sync.aligned.m64n80k16.f32." PTX "." PTX " {"          \
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,"                                       \
                 "%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39}, %40, %41, p, 1, 1, 0, 0; }" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),              \
                   "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),        \
                   "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),      \
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),      \
                   "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])       \
                 : "l"(a), "l"(b), "r"((int)add));                                                                              \
  }
DEFINE_WGMMA(bf16, "bf16")
DEFINE_WGMMA(fp16, "f16")
