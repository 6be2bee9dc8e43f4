// Hopper's products of a whole warpgroup, the right matrix in shared memory. tests/kernels/emulation.h
// has the same names for the CPU.
//
// A matrix is tiles of 64 elements of the depth: a row of a tile is 128 bytes, its eight 16-byte pieces exchanged by
// the row's last three bits (the hardware's 128-byte swizzle), and tiles begin at multiples of 1024 bytes.

// Where the hardware finds rows of a tile, from an element of the depth that is a multiple of 16 on.
__device__ __forceinline__ u64 tile_at(const void* rows) {
  return (u64)((shared_address(rows) & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// For all products but those of the last `LEFT` groups.
template <int LEFT = 0> __device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
// What ordinary stores and copies left in shared memory, seen by the tensor cores after the next barrier.
__device__ __forceinline__ void show_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
template <int COUNT> __device__ __forceinline__ void keep(float (&d)[COUNT]) {  // in their registers until here
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// Two products in 16 bits, each rounded once.
template <class T> __device__ __forceinline__ u32 times2(u32 a, u32 b);
template <> __device__ __forceinline__ u32 times2<bf16>(u32 a, u32 b) {
  u32 r;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
template <> __device__ __forceinline__ u32 times2<fp16>(u32 a, u32 b) {
  u32 r;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

// d (+)= a b^T: 64 rows by WIDE columns, depth 16. A lane holds d[4 j ...] of columns 8 j + 2 (lane % 4) and one
// more, in rows lane / 4 and 8 on, of its warp's 16. `a` is in shared memory as `b` is, or in registers, as
// `ldmatrix_x4` loads a warp's 16 rows.
template <class E, int WIDE> __device__ __forceinline__ void wgmma(float (&d)[WIDE / 2], u64 a, u64 b, bool add);
template <class E, int WIDE>
__device__ __forceinline__ void wgmma(float (&d)[WIDE / 2], const u32 (&a)[4], u64 b, bool add);
#define TEN(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7]), "+f"(d[i + 8]), "+f"(d[i + 9])
#define FORTY_NAMES                                                                     \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,"              \
  "%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39"
#define EIGHTY_NAMES                                                                    \
  FORTY_NAMES ",%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59," \
  "%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define DEFINE_WGMMA(T, PTX)                                                                                                       \
  template <> __device__ __forceinline__ void wgmma<T, 80>(float (&d)[40], u64 a, u64 b, bool add) {                               \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %42, 0; wgmma.mma_async.sync.aligned.m64n80k16.f32." PTX "." PTX                  \
                 " {" FORTY_NAMES "}, %40, %41, p, 1, 1, 0, 0; }"                                                                  \
                 : TEN(0), TEN(10), TEN(20), TEN(30) : "l"(a), "l"(b), "r"((int)add));                                             \
  }                                                                                                                                \
  template <> __device__ __forceinline__ void wgmma<T, 80>(float (&d)[40], const u32 (&a)[4], u64 b, bool add) {                   \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %45, 0; wgmma.mma_async.sync.aligned.m64n80k16.f32." PTX "." PTX                  \
                 " {" FORTY_NAMES "}, {%40, %41, %42, %43}, %44, p, 1, 1, 0; }"                                                    \
                 : TEN(0), TEN(10), TEN(20), TEN(30) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));         \
  }                                                                                                                                \
  template <> __device__ __forceinline__ void wgmma<T, 160>(float (&d)[80], const u32 (&a)[4], u64 b, bool add) {                  \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %85, 0; wgmma.mma_async.sync.aligned.m64n160k16.f32." PTX "." PTX                 \
                 " {" EIGHTY_NAMES "}, {%80, %81, %82, %83}, %84, p, 1, 1, 0; }"                                                   \
                 : TEN(0), TEN(10), TEN(20), TEN(30), TEN(40), TEN(50), TEN(60), TEN(70)                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));                                             \
  }
DEFINE_WGMMA(bf16, "bf16")
DEFINE_WGMMA(fp16, "f16")
