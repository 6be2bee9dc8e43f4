// Clusters of thread blocks, Hopper and later: they run on neighbouring multiprocessors, wait for each other without
// going through the L2 cache, and write to each other's shared memory, also by bulk copies (bulk.cuh).

__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// The place `own` in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ u32 remote(const void* own, int rank) {
  u32 address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(own)), "r"(rank));
  return address;
}
__device__ __forceinline__ void push(void* own, int rank, float v) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote(own, rank)), "f"(v) : "memory");
}
__device__ __forceinline__ void push(void* own, int rank, float2 v) {
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1,%2};" ::"r"(remote(own, rank)), "f"(v.x), "f"(v.y) : "memory");
}
__device__ __forceinline__ void push(void* own, int rank, float4 v) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(remote(own, rank)), "f"(v.x), "f"(v.y), "f"(v.z),
               "f"(v.w)
               : "memory");
}

// The same, counted by a barrier of that rank, which waits for these bytes.
__device__ __forceinline__ void push_async(void* own, int rank, float v, u64* barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(remote(own, rank)),
               "f"(v), "r"(remote(barrier, rank))
               : "memory");
}

// What threads wrote to shared memory is seen by the copy engine: each of them says so, before a barrier.
__device__ __forceinline__ void written_for_bulk() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// To the place `own` of another rank, whose barrier of that name waits for it.
__device__ __forceinline__ void bulk_push(void* own, int rank, const void* from, u32 bytes, u64* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(remote(own, rank)), "r"(shared_address(from)), "r"(bytes), "r"(remote(barrier, rank)) : "memory");
}
