// The names of kernels/depthwise_conv2d/cuda/bulk.cuh on the emulated GPU: barriers in shared memory and the copy
// engine, whose copies are done at once.

// A barrier holds the bytes that have come and nobody has said that they would, and how many rounds are done.
struct Rounds { int bytes, done; };
EMU_PLAIN static void make_bytes_barrier(u64* barrier) { *(Rounds*)barrier = {0, 0}; }
EMU_PLAIN static void expect_bytes(u64* barrier, u32 bytes) {
    Rounds& r = *(Rounds*)barrier;
    r.bytes -= bytes;
    if (!r.bytes) ++r.done;
}
EMU_PLAIN static void came(u64* barrier, u32 bytes) {
    Rounds& r = *(Rounds*)barrier;
    r.bytes += bytes;
    if (!r.bytes) ++r.done;
}
EMU_PLAIN static void wait_bytes(u64* barrier, u32 round, int line = __builtin_LINE()) {
    const int done = ((Rounds*)barrier)->done;
    if (done != (int)round + 1) emu::fail(nullptr, line, "a barrier waits for its round %u, %d are done", round, done);
}
EMU_PLAIN static void bulk_copy(void* to, const void* from, u32 bytes, u64* barrier, int line = __builtin_LINE()) {
    if ((u64)to % 16 || (u64)from % 16 || bytes % 16)
        emu::fail(nullptr, line, "misaligned: a bulk copy of %u bytes", bytes);
    if (!emu::within_shared(to, bytes))
        emu::fail(nullptr, line, "shared memory overrun: a bulk copy of %u bytes", bytes);
    memcpy(to, from, bytes);
    came(barrier, bytes);
}

EMU_PLAIN static void bulk_store(void* to, const void* from, u32 bytes, int line = __builtin_LINE()) {
    if ((u64)to % 16 || (u64)from % 16 || bytes % 16)
        emu::fail(nullptr, line, "misaligned: a bulk store of %u bytes", bytes);
    memcpy(to, from, bytes);
}
static void publish_shared() {}
static void commit_stores() {}
template <int PENDING> static void wait_stores_read() {}

namespace emu {

struct Store { unsigned char* row; const u32* r; };

template <int Matrices> EMU_PLAIN void store_matrices(Warp& warp) {
    Store* lanes[32];
    memcpy(lanes, warp.operands, sizeof lanes);
    const u32 base = current->index / 32 * 32;
    for (u32 lane = 0; lane < Matrices * 8; ++lane) {
        unsigned char* row = lanes[lane]->row;
        current = &threads[base + lane];
        if (!within_shared(row, 16) || (u64)row % 16)
            fail(nullptr, warp.line, "%s of a row at byte %lld of %d", warp.name, (i64)(row - smem), EMU_SHARED_BYTES);
        access(row, 16, true, base + lane, nullptr, warp.line);
        // lane `column` of the fragment's rows holds it, in either half of its word
        for (u32 column = 0; column < 8; ++column) {
            const u16 element = (u16)(lanes[column * 4 + lane % 8 / 2]->r[lane / 8] >> lane % 2 * 16);
            memcpy(row + 2 * column, &element, 2);
        }
    }
    current = &threads[threadIdx.x];
}

}  // namespace emu

static inline void stmatrix_x4_trans(void* row, const u32 (&r)[4], int line = __builtin_LINE()) {
    emu::Store operands{(unsigned char*)row, r};
    emu::collective("stmatrix_x4_trans", line, &operands, emu::store_matrices<4>);
}
static inline void stmatrix_x2_trans(void* row, u32 first, u32 second, int line = __builtin_LINE()) {
    const u32 r[2] = {first, second};
    emu::Store operands{(unsigned char*)row, r};
    emu::collective("stmatrix_x2_trans", line, &operands, emu::store_matrices<2>);
}

// A tensor map is a pointer here, to a map of MAP_N images, MAP_C channels, MAP_H rows and MAP_W columns.
#define __grid_constant__
using TensorMap = const T*;
static void fetch_map(const TensorMap&) {}
template <int DOWN, int ACROSS, int OCTETS, int IMAGES, class F>
void each_octet(u64 begin, int channel, int col, int row, int image, F use) {
    constexpr u64 swizzled = OCTETS == 8 ? 7 : OCTETS == 4 ? 3 : OCTETS == 2 ? 1 : 0;
    for (int cell = 0; cell < IMAGES * DOWN * ACROSS; ++cell)
        for (int o = 0; o < OCTETS; ++o) {
            u64 at = begin + (u64)(cell * OCTETS + o) * 16;
            at ^= (at >> 7 & swizzled) << 4;
            const i64 n = image + cell / (DOWN * ACROSS), y = row + cell / ACROSS % DOWN, x = col + cell % ACROSS,
                      c = channel + 8 * o;
            const bool there = y >= 0 && y < MAP_H && x >= 0 && x < MAP_W && c < MAP_C && n < MAP_N;
            use(smem + at, there ? ((n * MAP_H + y) * MAP_W + x) * MAP_C + c : -1);
        }
}
template <int DOWN, int ACROSS, int OCTETS, int IMAGES = 1>
EMU_PLAIN void tensor_copy(void* to, const TensorMap& map, int channel, int col, int row, int image, u64* barrier,
                           int line = __builtin_LINE()) {
    const u64 begin = (u64)to - (u64)smem;
    if (begin % 128) emu::fail(nullptr, line, "misaligned: a tensor copy to byte %llu of shared memory", begin);
    if (!emu::within_shared(to, IMAGES * DOWN * ACROSS * OCTETS * 16))
        emu::fail(nullptr, line, "shared memory overrun: a tensor copy to byte %llu", begin);
    each_octet<DOWN, ACROSS, OCTETS, IMAGES>(begin, channel, col, row, image, [&](unsigned char* at, i64 from) {
        if (from < 0) memset(at, 0, 16);
        else memcpy(at, map + from, 16);
    });
    came(barrier, IMAGES * DOWN * ACROSS * OCTETS * 16);
}
template <int DOWN, int ACROSS, int OCTETS, int IMAGES = 1>
EMU_PLAIN void tensor_store(const TensorMap& map, const void* from, int channel, int col, int row, int image) {
    each_octet<DOWN, ACROSS, OCTETS, IMAGES>((u64)from - (u64)smem, channel, col, row, image,
                                             [&](unsigned char* at, i64 to) {
                                                 if (to >= 0) memcpy((T*)map + to, at, 16);
                                             });
}
