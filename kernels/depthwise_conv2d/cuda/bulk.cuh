// The copy engine, Hopper and later: one thread orders whole pieces of memory, which come to
// shared memory beside the threads.

// A barrier in shared memory that waits for their bytes. One thread makes it, and in each of its rounds
// one says how many will come.
__device__ __forceinline__ void make_bytes_barrier(u64* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n fence.mbarrier_init.release.cluster;" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void expect_bytes(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait_bytes(u64* barrier, u32 round) {
  u32 done = 0;
  while (!done)
    asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done) : "r"(shared_address(barrier)), "r"(round & 1) : "memory");
}
// Multiples of 16 bytes, to and from multiples of 16.
__device__ __forceinline__ void bulk_copy(void* to, const void* from, u32 bytes, u64* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}
// Only as far as the L2 cache: who has asked may go on, and a kernel may ask for what another is still to write.
__device__ __forceinline__ void prefetch_l2(const void* from, u32 bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

// How the engine sees a channels-last tensor: made by the host (cuda.py), with the size of the boxes that are copied.
// Back to device memory. What threads wrote is published first; one of them orders the copy, and what it has ordered is
// read before the place is written anew.
__device__ __forceinline__ void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void bulk_store(void* to, const void* from, u32 bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void wait_stores_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory"); }

// Four 8x8 matrices to shared memory, as ldmatrix_x4_trans reads them: lane l brings where
// row l % 8 of matrix l / 8 lies.
__device__ __forceinline__ void stmatrix_x4_trans(void* row, const u32 (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};"
               ::"r"(shared_address(row)), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}
__device__ __forceinline__ void stmatrix_x2_trans(void* row, u32 first, u32 second) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" ::"r"(shared_address(row)), "r"(first), "r"(second) : "memory");
}

struct __align__(64) TensorMap { u64 v[16]; };

// Asked for before the first copy, which would wait for it.
__device__ __forceinline__ void fetch_map(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// A box of DOWN x ACROSS cells of IMAGES images, 8 OCTETS channels of each, from a place on; zeros where
// that is outside of the tensor. Of eight cells whose bytes would lie in the same banks, the octets
// change places, as the map says.
template <int DOWN, int ACROSS, int OCTETS, int IMAGES = 1>
__device__ __forceinline__ void tensor_copy(void* to, const TensorMap& map, int channel, int col, int row, int image, u64* barrier) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];"
               ::"r"(shared_address(to)), "l"(&map), "r"(channel), "r"(col), "r"(row), "r"(image), "r"(shared_address(barrier)) : "memory");
}

// Back again; cells outside of the tensor are left out.
template <int DOWN, int ACROSS, int OCTETS, int IMAGES = 1>
__device__ __forceinline__ void tensor_store(const TensorMap& map, const void* from, int channel, int col, int row, int image) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3, %4}], [%5];"
               ::"l"(&map), "r"(channel), "r"(col), "r"(row), "r"(image), "r"(shared_address(from)) : "memory");
}
