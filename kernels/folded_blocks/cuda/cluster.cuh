// Clusters of blocks of threads, from Hopper on: they run on neighbouring multiprocessors, wait for each other without going through the L2 cache, and
// write to each other's shared memory. Bulk copies, which the copy engine makes beside the threads.

__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// The place `own` in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ u32 remote(const void* own, int rank) {
  u32 address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(own)), "r"(rank));
  return address;
}
__device__ __forceinline__ void push(void* own, int rank, float v) { asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote(own, rank)), "f"(v) : "memory"); }
__device__ __forceinline__ void push(void* own, int rank, float4 v) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(remote(own, rank)), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}

// A barrier in shared memory that waits for the bytes of bulk copies. One thread makes it, and in each of its rounds one says how many will come.
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
// What threads wrote to shared memory is seen by the copy engine: each of them says so, before a barrier.
__device__ __forceinline__ void written_for_bulk() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Multiples of 16 bytes, to and from multiples of 16.
__device__ __forceinline__ void bulk_copy(void* to, const void* from, u32 bytes, u64* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}
// To the place `own` of another rank, whose barrier of that name waits for it.
__device__ __forceinline__ void bulk_push(void* own, int rank, const void* from, u32 bytes, u64* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(remote(own, rank)), "r"(shared_address(from)), "r"(bytes), "r"(remote(barrier, rank)) : "memory");
}
