// Runs one CUDA C++ kernel on the CPU, for tests on machines without a GPU. emulation.py puts this file in front of the
// kernel's source, in place of the production prelude, and compiles both with g++.
//
// Every CUDA thread is a fiber. It runs until it needs others: in __syncthreads() it waits for its block, in a warp
// collective (ldmatrix, mma, shfl, __syncwarp) for its 32 lanes; the last lane to come computes for all. One operating
// system thread runs everything, so the order is always the same and a missing barrier always has the same effect.
//
// What a GPU would leave undefined is made visible: shared memory starts as NaN, an asynchronous copy
// arrives only in the wait for it (its target is NaN until then), and shared memory and each tensor end at a
// page that cannot be touched.
#pragma once

#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <math.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <type_traits>
#include <ucontext.h>
#include <utility>

#define __device__
#define __host__
#define __global__
#define __constant__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __noinline__ __attribute__((noinline))

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

struct bf16 { u16 bits; };
struct fp16 { u16 bits; };
typedef float fp32;

// The alignments are CUDA's: under `sanitize` a misaligned vector access is an error, as it is on the GPU.
struct uint3 { u32 x, y, z; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static uint3 threadIdx, blockIdx, blockDim, gridDim;

// Shared memory: whole pages between two guards, and `smem` placed so that the launch's last byte (rounded up to 16, to
// keep the alignment) is the last before the guard. 64 KB is the largest page of any machine we may meet.
// How many bytes a launch has is not known here: this header is compiled once for all kernels. EMU_PLACE_SHARED makes
// the arena, behind the kernel.
#define EMU_PAGE 65536
#define EMU_MOST_SHARED_BYTES (227 * 1024)
#define EMU_ROUND(bytes) (((bytes) + 15) / 16 * 16)
#define EMU_ROUND_TO_PAGES(bytes) (((bytes) + EMU_PAGE - 1) / EMU_PAGE * EMU_PAGE)
#define EMU_SHARED_BYTES emu_shared_bytes
#define EMU_ROUNDED EMU_ROUND(EMU_SHARED_BYTES)
#define EMU_PAGES EMU_ROUND_TO_PAGES(EMU_ROUNDED)
#define EMU_TEXT_(...) #__VA_ARGS__
#define EMU_TEXT(...) EMU_TEXT_(__VA_ARGS__)
#define EMU_PLACE_SHARED(bytes) \
    asm(".pushsection .bss.emu_shared, \"aw\", %nobits\n" \
        ".balign " EMU_TEXT(EMU_PAGE) "\n" \
        ".globl emu_arena\n.hidden emu_arena\n.globl smem\n.hidden smem\n" \
        "emu_arena: .zero " EMU_TEXT(EMU_PAGE + EMU_ROUND_TO_PAGES(EMU_ROUND(bytes)) + EMU_PAGE) "\n" \
        ".set smem, emu_arena + " EMU_TEXT(EMU_PAGE + EMU_ROUND_TO_PAGES(EMU_ROUND(bytes)) - EMU_ROUND(bytes)) "\n" \
        ".popsection\n"); \
    const int emu_shared_bytes = bytes;
extern unsigned char smem[];
extern unsigned char emu_arena[];
extern const int emu_shared_bytes;
// where the linker put the library's first byte
extern const char __ehdr_start[] __attribute__((visibility("hidden")));

// For what the checks of `sanitize` must not see (atomics race on purpose) or must not slow down.
#define EMU_PLAIN __attribute__((noinline, no_sanitize("thread,undefined")))

namespace emu {

constexpr u32 kStack = 65536, kAllLanes = 0xffffffffu;
constexpr u32 kMaxThreads = 1024;

// ---- What emulation.py hands over; the same fields in the same order as there.
struct Buffer {  // memory of one or more tensors, and its guarded copy
    unsigned char* host;
    u64 bytes, phase;  // phase: the address modulo 16 that it would have on the GPU
    unsigned char* map;
    u64 map_bytes;
    unsigned char* copy;
};
struct Argument {
    int kind;    // p(ointer), q: 8-byte integer, i: 4-byte integer, f(loat)
    int buffer;  // of a pointer; -1: null
    u64 value;   // the bytes; of a pointer the host's address
};
struct Launch {
    const char* kernel;
    u32 grid[3], block;
    int reverse, timeout;
    Buffer* buffers;
    i64 buffer_count;
    Argument* arguments;
    i64 argument_count;
    u64 fault;  // out: where in the library it failed, 0 when the message already says the line
};

// ---- Fibers
struct Fiber {
    void* at[5];
    ucontext_t start;
    bool started;
};
struct Copy {
    unsigned char* to;
    const unsigned char* from;
    u32 bytes, group;
    bool valid;
};
struct Thread {
    Fiber fiber;
    u32 index;
    Copy* copies;
    u32 first, count, capacity, group;
};
struct Warp {
    u32 ready, arrived;  // lanes that can run; lanes that wait in the collective
    const char* name;    // of that collective
    int line;
    u32 epoch;  // __syncwarp() so far
    void* operands[32];
};

static Thread threads[kMaxThreads];
static Warp warps[kMaxThreads / 32];
static Fiber scheduler;
static Thread* current;
static Launch* launch;
static unsigned char* stacks;
static void (*call)();
constexpr u32 kGroups = 15;
static u32 at_group[kGroups];  // threads in sync_some()
static u32 at_barrier, exited, phase;  // phase: barriers passed in this launch
static int barrier_line;
static sigjmp_buf failed;
static pthread_t runner;
static char message[512];

[[noreturn, gnu::format(printf, 3, 4)]] static void fail(const void* where, int line, const char* format, ...) {
    int n = snprintf(message, sizeof message, "kernel %s", launch->kernel);
    if (blockIdx.z < gridDim.z)
        n += snprintf(message + n, sizeof message - n, ", block (%u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z);
    if (current) n += snprintf(message + n, sizeof message - n, ", thread %u", current->index);
    if (line) n += snprintf(message + n, sizeof message - n, ", line %d", line);
    n += snprintf(message + n, sizeof message - n, ": ");
    va_list values;
    va_start(values, format);
    vsnprintf(message + n, sizeof message - n, format, values);
    va_end(values);
    launch->fault = where ? (u64)where - (u64)__ehdr_start : 0;
    siglongjmp(failed, 1);
}

// swapcontext() asks the system for the signal mask each time, and setjmp() scrambles addresses; the compiler's own
// pair stores three registers. It wants the two ends in different functions.
[[noreturn, gnu::noinline]] static void jump(Fiber& to) { __builtin_longjmp(to.at, 1); }

[[gnu::noinline]] static void switch_to(Fiber& from, Fiber& to) {
    if (__builtin_setjmp(from.at) == 0) {
        if (to.started) jump(to);
        to.started = true;
        setcontext(&to.start);
    }
    asm volatile("" ::: "memory");  // others have run: nothing read before may be taken for still true
}

static void resume(Fiber& from, Thread& to) {
    current = &to;
    threadIdx.x = to.index;
    switch_to(from, to.fiber);
}

static u32 next_lane(u32 ready, u32 lane) {
    if (launch->reverse) {
        u32 below = ready >> lane | (u64)ready << (32 - lane);
        return (lane + 31 - __builtin_clz(below)) % 32;
    }
    lane = (lane + 1) % 32;
    return (lane + __builtin_ctz(ready >> lane | (u64)ready << (32 - lane))) % 32;
}

// Gives way to a lane of the same warp while there is one, so that a collective stays within the cache.
static void yield() {
    Thread& self = *current;
    u32 warp = self.index / 32, ready = warps[warp].ready;
    if (ready) {
        resume(self.fiber, threads[warp * 32 + next_lane(ready, self.index % 32)]);
    } else {
        current = nullptr;
        switch_to(self.fiber, scheduler);
    }
}

static void fiber_main() {
    for (;;) {
        call();
        Thread& self = *current;
        warps[self.index / 32].ready &= ~(1u << self.index % 32);
        ++exited;
        yield();
    }
}

// All lanes of a warp bring their operands; the last one computes, then all go on.
[[gnu::noinline]] static void collective(const char* name, int line, void* operands, void (*compute)(Warp&)) {
    u32 lane = current->index % 32;
    Warp& warp = warps[current->index / 32];
    if (!warp.arrived) {
        warp.name = name;
        warp.line = line;
    } else if (warp.line != line || warp.name != name) {
        fail(nullptr, line, "deadlock: %s here, but other lanes of the warp wait in %s at line %d", name, warp.name,
             warp.line);
    }
    warp.operands[lane] = operands;
    warp.arrived |= 1u << lane;
    if (warp.arrived == kAllLanes) {
        if (compute) compute(warp);
        warp.arrived = 0;
        warp.ready = kAllLanes;
        return;
    }
    warp.ready &= ~(1u << lane);
    yield();
}

static void run_block() {
    u32 count = launch->block / 32;
    memset(smem, 0xff, EMU_SHARED_BYTES);
    at_barrier = exited = 0;
    for (u32 i = 0; i < launch->block; ++i) threads[i].first = threads[i].count = threads[i].group = 0;
    for (u32 i = 0; i < count; ++i) warps[i].ready = kAllLanes, warps[i].arrived = 0;
    for (;;) {
        for (bool some = true; some;) {  // again where a group of threads has come together
            some = false;
            for (u32 i = 0; i < count; ++i) {
                u32 w = launch->reverse ? count - 1 - i : i;
                if (!warps[w].ready) continue;
                some = true;
                resume(scheduler, threads[w * 32 + (launch->reverse ? 31 : 0)]);
                if (warps[w].arrived)
                    fail(nullptr, warps[w].line,
                         "deadlock: %d lanes of warp %u wait in %s, the others have exited or wait in __syncthreads()",
                         __builtin_popcount(warps[w].arrived), w, warps[w].name);
            }
        }
        for (u32 i = 0; i < kGroups; ++i)
            if (at_group[i]) fail(nullptr, barrier_line, "deadlock: %u threads wait in sync_some(%u)", at_group[i], i);
        ++phase;
        if (exited == launch->block) return;
        if (exited)
            fail(nullptr, barrier_line, "deadlock: %u threads wait in __syncthreads(), %u have exited", at_barrier,
                 exited);
        at_barrier = 0;
        for (u32 i = 0; i < count; ++i) warps[i].ready = kAllLanes;
    }
}

// ---- Memory
// Beside shared memory and the tensors, up to the guard: a NaN of all three types, and none that a kernel would write.
constexpr unsigned char canary(u64 address) { return address % 2 ? 0xff : 0xa5; }
static void set_canaries(unsigned char* from, u64 bytes) {
    for (u64 i = 0; i < bytes; ++i) from[i] = canary((u64)from + i);
}

static void check_canaries() {
    for (unsigned char* p = emu_arena + EMU_PAGE; p < smem; ++p)
        if (*p != canary((u64)p))
            fail(nullptr, 0, "shared memory overrun: a write %lld bytes before its start", (i64)(smem - p));
    for (u32 i = EMU_SHARED_BYTES; i < EMU_ROUNDED; ++i)
        if (smem[i] != canary(i))
            fail(nullptr, 0, "shared memory overrun: a write to byte %u of %d", i, EMU_SHARED_BYTES);
}

static const char* name_of(int buffer) {
    static char text[64];
    int n = snprintf(text, sizeof text, "argument");
    for (i64 i = 0; i < launch->argument_count && n < 50; ++i)
        if (launch->arguments[i].kind == 'p' && launch->arguments[i].buffer == buffer)
            n += snprintf(text + n, sizeof text - n, " %lld", i);
    return text;
}

static void check_buffers() {
    for (i64 i = 0; i < launch->buffer_count; ++i) {
        const Buffer& b = launch->buffers[i];
        for (const unsigned char *p = b.map + EMU_PAGE, *end = b.map + b.map_bytes - EMU_PAGE; p < end; ++p) {
            if (p == b.copy) p += b.bytes;
            if (p < end && *p != canary((u64)p))
                fail(nullptr, 0, "global memory overrun: a write to byte %lld of the %llu of %s", (i64)(p - b.copy),
                     b.bytes, name_of(i));
        }
    }
}

static bool map_buffers() {
    for (i64 i = 0; i < launch->buffer_count; ++i) {
        Buffer& b = launch->buffers[i];
        u64 pages = (b.bytes + 32 + EMU_PAGE - 1) / EMU_PAGE * EMU_PAGE;
        b.map_bytes = pages + 2 * EMU_PAGE + EMU_PAGE;  // one more: mmap aligns to the machine's page, not to ours
        void* map = mmap(nullptr, b.map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED) return false;
        b.map = (unsigned char*)map;
        unsigned char* aligned = (unsigned char*)(((u64)map + EMU_PAGE - 1) / EMU_PAGE * EMU_PAGE);
        munmap(aligned + pages + 2 * EMU_PAGE, b.map + b.map_bytes - (aligned + pages + 2 * EMU_PAGE));
        if (aligned > b.map) munmap(b.map, aligned - b.map);
        b.map = aligned;
        b.map_bytes = pages + 2 * EMU_PAGE;
        mprotect(b.map + EMU_PAGE, pages, PROT_READ | PROT_WRITE);
        set_canaries(b.map + EMU_PAGE, pages);
        u64 end = (u64)b.map + EMU_PAGE + pages;
        b.copy = (unsigned char*)((end - b.bytes - b.phase) / 16 * 16 + b.phase);
        memcpy(b.copy, b.host, b.bytes);
    }
    return true;
}

static void explain_fault(const unsigned char* address, const void* where) {
    if (address >= emu_arena && address < emu_arena + EMU_PAGE + EMU_PAGES + EMU_PAGE)
        fail(where, 0, "shared memory overrun: byte %lld of %d", (i64)(address - smem), EMU_SHARED_BYTES);
    for (i64 i = 0; i < launch->buffer_count; ++i) {
        const Buffer& b = launch->buffers[i];
        if (address >= b.map && address < b.map + b.map_bytes)
            fail(where, 0, "global memory overrun: byte %lld of the %llu of %s", (i64)(address - b.copy), b.bytes,
                 name_of(i));
    }
    if (address >= stacks && address < stacks + 2ull * kStack * launch->block)
        fail(where, 0, "the thread's local variables need more than %u bytes of stack", kStack);
    fail(where, 0, "access to the invalid address %p (none of shared memory or the arguments; or misaligned)",
         (const void*)address);
}

// ---- Races in shared memory; only `sanitize` calls this, from the hooks that g++ puts at every access.
// Two accesses of one byte by different threads, one a write, need a barrier in between: __syncthreads(), or
// __syncwarp() within a warp.
struct Access {
    u32 phase, epoch;
    u16 thread;
    bool many, many_warps;  // also others in this phase; also of other warps
};
#ifdef EMU_SANITIZE
static Access writers[EMU_MOST_SHARED_BYTES + 1], readers[EMU_MOST_SHARED_BYTES + 1];

EMU_PLAIN static bool conflict(const Access& other, u32 thread) {
    if (other.phase != phase) return false;
    if (other.many_warps || other.thread / 32 != thread / 32) return true;
    return (other.many || other.thread != thread) && other.epoch == warps[thread / 32].epoch;
}

EMU_PLAIN static void access(const void* address, u32 bytes, bool write, u32 thread, const void* where, int line = 0,
                             bool done = false) {
    u64 offset = (u64)address - (u64)smem;
    if (offset >= EMU_ROUNDED || !current) return;
    for (u64 i = offset; i < offset + bytes && i < EMU_ROUNDED; ++i) {
        if (conflict(writers[i], thread))
            fail(where, line,
                 "race: thread %u %s byte %llu of shared memory that thread %u wrote, with no barrier in between",
                 thread, write ? "writes" : "reads", i, writers[i].thread);
        if (write && conflict(readers[i], thread))
            fail(where, line,
                 "race: thread %u writes byte %llu of shared memory that thread %u read, with no barrier in between",
                 thread, i, readers[i].thread);
        Access& mine = write ? writers[i] : readers[i];
        // `done`: ldmatrix has read for all lanes when any goes on, so that its own warp may overwrite at once.
        u32 epoch = warps[thread / 32].epoch - done;
        bool same = mine.phase == phase;
        mine.many_warps = same && (mine.many_warps || mine.thread / 32 != thread / 32);
        mine.many = same && mine.epoch == epoch && (mine.many || mine.thread != thread);
        mine.phase = phase, mine.epoch = epoch, mine.thread = thread;
    }
}
#else
static void access(const void*, u32, bool, u32, const void*, int = 0, bool = false) {}
#endif

static bool within_shared(const void* address, u32 bytes) {
    return (u64)address >= (u64)smem && (u64)address + bytes <= (u64)smem + EMU_SHARED_BYTES;
}

// ---- Signals: a touched guard page, and the end of the time allowed
static void on_signal(int number, siginfo_t* info, void* context) {
    // another thread's fault is not ours to explain; the alarm is passed on
    if (!pthread_equal(pthread_self(), runner)) {
        if (number == SIGVTALRM) pthread_kill(runner, number);
        else signal(number, SIG_DFL);
        return;
    }
    const void* where = nullptr;
#ifdef __x86_64__
    where = (const void*)((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP];
#endif
    if (number == SIGVTALRM)
        fail(where, 0, "not finished after %d seconds of computing: an endless loop?", launch->timeout);
    if (number == SIGFPE) fail(where, 0, "integer division by zero");
    explain_fault((const unsigned char*)info->si_addr, where);
}

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGVTALRM};
static struct sigaction previous_actions[4];
static stack_t previous_stack;
static char signal_stack[65536];

static void take_signals() {
    stack_t own{};
    own.ss_sp = signal_stack;
    own.ss_size = sizeof signal_stack;
    sigaltstack(&own, &previous_stack);
    struct sigaction action{};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &action, &previous_actions[i]);
    itimerval time{};
    time.it_value.tv_sec = launch->timeout;
    setitimer(ITIMER_VIRTUAL, &time, nullptr);
}

static void return_signals() {
    itimerval never{};
    setitimer(ITIMER_VIRTUAL, &never, nullptr);
    for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &previous_actions[i], nullptr);
    sigaltstack(&previous_stack, nullptr);
}

// ---- Launch
static bool start_fibers() {
    u64 slot = 2ull * kStack;  // the stack, and below it a guard
    void* pool = mmap(nullptr, slot * launch->block, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pool == MAP_FAILED) return false;
    stacks = (unsigned char*)pool;
    for (u32 i = 0; i < launch->block; ++i) {
        unsigned char* stack = stacks + slot * i + kStack;
        if (mprotect(stack, kStack, PROT_READ | PROT_WRITE)) return false;
        Thread& thread = threads[i];
        thread.index = i;
        thread.fiber.started = false;
        getcontext(&thread.fiber.start);
        thread.fiber.start.uc_link = nullptr;
        thread.fiber.start.uc_stack.ss_sp = stack;
        // Stacks that all end at the same address modulo 64 KB would share a few cache sets.
        thread.fiber.start.uc_stack.ss_size = kStack - i % 8 * 576;
        makecontext(&thread.fiber.start, fiber_main, 0);
    }
    return true;
}

static void run_grid() {
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
                run_block();
                check_canaries();
            }
    check_buffers();  // blockIdx is past the end: a message names no block
}

template <class P> constexpr int kind_of() {
    if (std::is_pointer<P>::value) return 'p';
    if (std::is_same<P, float>::value) return 'f';
    return std::is_integral<P>::value ? (sizeof(P) == 8 ? 'q' : sizeof(P) == 4 ? 'i' : '?') : '?';
}

template <class... P> struct Kernel {
    static void (*function)(P...);

    template <class T> static T value(u64 bytes) {
        T result;
        memcpy(&result, &bytes, sizeof(T));
        return result;
    }
    template <size_t... I> static void apply(std::index_sequence<I...>) {
        function(value<P>(launch->arguments[I].value)...);
    }
    static void run() { apply(std::index_sequence_for<P...>()); }
};
template <class... P> void (*Kernel<P...>::function)(P...);

static void release() {
    for (i64 i = 0; i < launch->buffer_count; ++i)
        if (launch->buffers[i].map) munmap(launch->buffers[i].map, launch->buffers[i].map_bytes);
    if (stacks) munmap(stacks, 2ull * kStack * launch->block);
    stacks = nullptr;
    for (u32 i = 0; i < launch->block; ++i) {
        free(threads[i].copies);
        threads[i].copies = nullptr;
        threads[i].capacity = 0;
    }
}

// Returns what went wrong in one line, or null; then the results are in the tensors.
template <class... P> const char* run(Launch* what, void (*kernel)(P...)) {
    launch = what;
    current = nullptr;
    scheduler.started = true;  // it is where we are
    runner = pthread_self();
    gridDim = uint3{what->grid[0], what->grid[1], what->grid[2]};
    blockDim = uint3{what->block, 1, 1};
    blockIdx = threadIdx = uint3{};
    constexpr int kinds[] = {kind_of<P>()..., 0};
    if (what->argument_count != (i64)sizeof...(P)) {
        snprintf(message, sizeof message, "kernel %s takes %d arguments, given %d", what->kernel, (int)sizeof...(P),
                 (int)what->argument_count);
        return message;
    }
    for (i64 i = 0; i < what->argument_count; ++i)
        if (kinds[i] != what->arguments[i].kind) {
            snprintf(message, sizeof message,
                     "kernel %s, argument %d: the kernel takes '%c', given '%c' (p pointer, q i64, i int, f float)",
                     what->kernel, (int)i, kinds[i], what->arguments[i].kind);
            return message;
        }
    Kernel<P...>::function = kernel;
    call = Kernel<P...>::run;
    mprotect(emu_arena, EMU_PAGE, PROT_NONE);
    mprotect(emu_arena + EMU_PAGE + EMU_PAGES, EMU_PAGE, PROT_NONE);
    set_canaries(emu_arena + EMU_PAGE, EMU_PAGES);
    if (!map_buffers() || !start_fibers()) {
        release();
        return "out of memory for the emulation's stacks and tensors";
    }
    for (i64 i = 0; i < what->argument_count; ++i) {
        Argument& a = what->arguments[i];
        if (a.kind == 'p' && a.buffer >= 0) {
            const Buffer& b = what->buffers[a.buffer];
            a.value = (u64)b.copy + (a.value - (u64)b.host);
        }
    }
    ++phase;  // of the last launch; and never 0, which is what the shadow starts with
    take_signals();
    bool good = false;
    if (sigsetjmp(failed, 1) == 0) {
        run_grid();
        return_signals();
        good = true;
    } else {
        return_signals();
    }
    if (good)
        for (i64 i = 0; i < launch->buffer_count; ++i) {
            const Buffer& b = launch->buffers[i];
            if (memcmp(b.host, b.copy, b.bytes)) memcpy(b.host, b.copy, b.bytes);  // what is only read may be read-only
        }
    release();
    return good ? nullptr : message;
}

}  // namespace emu

// ---- Barriers. The default arguments hold the line of the call.
[[gnu::noinline]] static void __syncthreads(int line = __builtin_LINE()) {
    using namespace emu;
    if (at_barrier && barrier_line != line)
        fail(nullptr, line, "deadlock: __syncthreads() here, but other threads wait in the one at line %d",
             barrier_line);
    barrier_line = line;
    ++at_barrier;
    warps[current->index / 32].ready &= ~(1u << current->index % 32);
    yield();
}

// Of COUNT threads, which stand side by side.
template <int COUNT> [[gnu::noinline]] void sync_some(int group) {
    using namespace emu;
    const u32 first = current->index / COUNT * COUNT / 32;
    if (++at_group[group] == COUNT) {
        at_group[group] = 0;
        ++phase;
        for (u32 i = 0; i < COUNT / 32; ++i) warps[first + i].ready = kAllLanes;
        return;
    }
    warps[current->index / 32].ready &= ~(1u << current->index % 32);
    yield();
}

static inline void __syncwarp(u32 mask = emu::kAllLanes, int line = __builtin_LINE()) {
    if (mask != emu::kAllLanes) emu::fail(nullptr, line, "__syncwarp() of less than a warp is not emulated");
    emu::collective("__syncwarp()", line, nullptr, [](emu::Warp& warp) { ++warp.epoch; });
}

static inline void __threadfence() {}
static inline void __threadfence_block() {}

// ---- Numbers
static inline u32 __float_as_uint(float value) { u32 bits; memcpy(&bits, &value, 4); return bits; }
static inline float __uint_as_float(u32 bits) { float value; memcpy(&value, &bits, 4); return value; }
static inline int __float_as_int(float value) { return (int)__float_as_uint(value); }
static inline float __int_as_float(int bits) { return __uint_as_float((u32)bits); }
static inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }

template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point<T>::value) return fmin((T)a, (T)b);  // as CUDA's: a NaN loses
    else return (T)b < (T)a ? (T)b : (T)a;
}
template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point<T>::value) return fmax((T)a, (T)b);
    else return (T)a < (T)b ? (T)b : (T)a;
}

static inline float to_float(float value) { return value; }
static inline float to_float(bf16 value) { return __uint_as_float((u32)value.bits << 16); }
static inline float to_float(fp16 value) {
    u32 sign = (u32)(value.bits & 0x8000) << 16, rest = (u32)(value.bits & 0x7fff) << 13;
    if (rest >= 0x0f800000) return __uint_as_float(sign | 0x70000000 | rest);  // infinity and NaN
    // Moves the exponent by 112, which also makes normal numbers of subnormal ones.
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest) * 0x1p112f));
}

template <class T> T from_float(float value);
template <> inline float from_float<float>(float value) { return value; }
template <> inline bf16 from_float<bf16>(float value) {
    u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};
    return {(u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <> inline fp16 from_float<fp16>(float value) {
    u32 bits = __float_as_uint(value), sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return {0x7fff};
    if (bits >= 0x477ff000) return {(u16)(sign | 0x7c00)};
    // Beside 0.5 the last place of a float is that of a subnormal half: the addition rounds.
    if (bits < 0x38800000) return {(u16)(sign | (__float_as_uint(__uint_as_float(bits) + 0.5f) - 0x3f000000))};
    return {(u16)(sign | ((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13))};
}

template <class T> u32 pack2(float lo, float hi) { return from_float<T>(lo).bits | (u32)from_float<T>(hi).bits << 16; }
template <class T> float lo_float(u32 pair) { return to_float(T{(u16)pair}); }
template <class T> float hi_float(u32 pair) { return to_float(T{(u16)(pair >> 16)}); }

static inline u32 prmt(u32 a, u32 b, u32 selector) {
    u64 bytes = a | (u64)b << 32;
    u32 result = 0;
    for (int i = 0; i < 4; ++i) {
        u32 choice = selector >> 4 * i & 15, byte = bytes >> 8 * (choice & 7) & 255;
        if (choice & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << 8 * i;
    }
    return result;
}

// ---- Memory
template <class T> T __ldg(const T* address) { return *address; }
template <class T> T __ldcg(const T* address) { return *address; }
static inline u32 load_acquire(const u32* address) { return *address; }
static inline void overlap_launches() {}
static inline float tanh_approx(float value) { return tanhf(value); }
static inline int uniform(int value) { return value; }

EMU_PLAIN static u32 atomicAdd(u32* address, u32 value) { u32 old = *address; *address = old + value; return old; }
EMU_PLAIN static int atomicAdd(int* address, int value) { return (int)atomicAdd((u32*)address, (u32)value); }
EMU_PLAIN static float atomicAdd(float* address, float value) {
    float old = *address;
    *address = old + value;
    return old;
}
EMU_PLAIN static u32 atomicInc(u32* address, u32 limit) {
    u32 old = *address;
    *address = old >= limit ? 0 : old + 1;
    return old;
}

namespace emu {

EMU_PLAIN static void copy_later(void* to, const void* from, u32 bytes, bool valid, int line) {
    Thread& self = *current;
    if ((u64)to % bytes || (valid && (u64)from % bytes))
        fail(nullptr, line, "misaligned: cp_async_%u from %p to byte %lld of shared memory", bytes, from,
             (i64)((unsigned char*)to - smem));
    if (!within_shared(to, bytes))
        fail(nullptr, line, "shared memory overrun: cp_async_%u to byte %lld of %d", bytes,
             (i64)((unsigned char*)to - smem), EMU_SHARED_BYTES);
    const unsigned char* source = (const unsigned char*)from;
    if (valid) (void)*(volatile const unsigned char*)source;  // so that an overrun fails here, not in the wait
    access(to, bytes, true, self.index, nullptr, line);
    memset(to, 0xff, bytes);  // undefined until the wait
    if (self.count == self.capacity) {
        self.capacity = self.capacity ? 2 * self.capacity : 64;
        self.copies = (Copy*)realloc(self.copies, self.capacity * sizeof(Copy));
    }
    self.copies[self.count++] = {(unsigned char*)to, source, bytes, self.group, valid};
}

EMU_PLAIN static void copies_wait(u32 newest, int line) {
    Thread& self = *current;
    for (; self.first < self.count && self.copies[self.first].group + newest < self.group; ++self.first) {
        const Copy& copy = self.copies[self.first];
        access(copy.to, copy.bytes, true, self.index, nullptr, line);
        if (copy.valid) memcpy(copy.to, copy.from, copy.bytes);
        else memset(copy.to, 0, copy.bytes);
    }
    if (self.first == self.count) self.first = self.count = 0;
}

}  // namespace emu

static inline void cp_async_16(void* shared, const void* global, bool valid, int line = __builtin_LINE()) {
    emu::copy_later(shared, global, 16, valid, line);
}
static inline void cp_async_8(void* shared, const void* global, bool valid, int line = __builtin_LINE()) {
    emu::copy_later(shared, global, 8, valid, line);
}
static inline void cp_async_4(void* shared, const void* global, bool valid, int line = __builtin_LINE()) {
    emu::copy_later(shared, global, 4, valid, line);
}
static inline void cp_async_commit() { ++emu::current->group; }
template <int N> void cp_async_wait(int line = __builtin_LINE()) { emu::copies_wait(N, line); }

// ---- Warp collectives
namespace emu {

struct Shuffle { u32 value; int by; u32 result; };

template <bool Down> EMU_PLAIN void shuffle(Warp& warp) {
    for (u32 lane = 0; lane < 32; ++lane) {
        Shuffle& mine = *(Shuffle*)warp.operands[lane];
        u32 other = Down ? lane + mine.by : lane ^ mine.by;
        mine.result = ((Shuffle*)warp.operands[other < 32 ? other : lane])->value;
    }
}

struct Load { u32* r; const unsigned char* row; };

template <int Matrices, bool Transposed> EMU_PLAIN void load_matrices(Warp& warp) {
    Load* lanes[32];
    memcpy(lanes, warp.operands, sizeof lanes);
    u32 base = current->index / 32 * 32;
    for (u32 lane = 0; lane < Matrices * 8; ++lane) {
        const unsigned char* row = lanes[lane]->row;
        current = &threads[base + lane];  // a message names the lane that brought the address
        if (!within_shared(row, 16))
            fail(nullptr, warp.line, "shared memory overrun: %s of a row at byte %lld of %d", warp.name,
                 (i64)(row - smem), EMU_SHARED_BYTES);
        if ((u64)row % 16)
            fail(nullptr, warp.line, "misaligned: %s of a row at byte %lld of shared memory", warp.name,
                 (i64)(row - smem));
        access(row, 16, false, base + lane, nullptr, warp.line, true);
    }
    current = &threads[threadIdx.x];
    for (u32 m = 0; m < Matrices; ++m)
        for (u32 lane = 0; lane < 32; ++lane) {
            u32 pair = lane % 4 * 2, line = lane / 4;
            if (Transposed) {
                u16 low, high;
                memcpy(&low, lanes[m * 8 + pair]->row + 2 * line, 2);
                memcpy(&high, lanes[m * 8 + pair + 1]->row + 2 * line, 2);
                lanes[lane]->r[m] = low | (u32)high << 16;
            } else {
                memcpy(&lanes[lane]->r[m], lanes[m * 8 + line]->row + 2 * pair, 4);
            }
        }
}

struct Product { float* d; u32 a[4], b[2]; };

// D += A B for 16 x 8 results, fragments as in the PTX ISA. One conversion of A and B, then rows of eight.
template <class T, int K> EMU_PLAIN void multiply(Warp& warp) {
    typedef float Row __attribute__((vector_size(32)));
    float a[16][K];
    union { float at[K][8]; Row row[K]; } b;
    union { float at[16][8]; Row row[16]; } d;
    for (u32 lane = 0; lane < 32; ++lane) {
        const Product& p = *(const Product*)warp.operands[lane];
        u32 g = lane / 4, t = lane % 4 * 2;
        for (u32 i = 0; i < K / 4; ++i) {
            float* pair = &a[g + i % 2 * 8][t + i / 2 * 8];
            pair[0] = lo_float<T>(p.a[i]), pair[1] = hi_float<T>(p.a[i]);
        }
        for (u32 i = 0; i < K / 8; ++i)
            b.at[t + 8 * i][g] = lo_float<T>(p.b[i]), b.at[t + 8 * i + 1][g] = hi_float<T>(p.b[i]);
        memcpy(&d.at[g][t], p.d, 8);
        memcpy(&d.at[g + 8][t], p.d + 2, 8);
    }
    for (u32 m = 0; m < 16; ++m) {
        Row sum = d.row[m];
        for (u32 k = 0; k < K; ++k) sum += a[m][k] * b.row[k];
        d.row[m] = sum;
    }
    for (u32 lane = 0; lane < 32; ++lane) {
        float* out = ((const Product*)warp.operands[lane])->d;
        memcpy(out, &d.at[lane / 4][lane % 4 * 2], 8);
        memcpy(out + 2, &d.at[lane / 4 + 8][lane % 4 * 2], 8);
    }
}

}  // namespace emu

static inline u32 shfl_xor(u32 value, int mask, int line = __builtin_LINE()) {
    emu::Shuffle operands{value, mask, 0};
    emu::collective("shfl_xor", line, &operands, emu::shuffle<false>);
    return operands.result;
}
static inline float shfl_xor(float value, int mask, int line = __builtin_LINE()) {
    return __uint_as_float(shfl_xor(__float_as_uint(value), mask, line));
}
static inline float shfl_down(float value, int delta, int line = __builtin_LINE()) {
    emu::Shuffle operands{__float_as_uint(value), delta, 0};
    emu::collective("shfl_down", line, &operands, emu::shuffle<true>);
    return __uint_as_float(operands.result);
}

namespace emu {

struct Turn { u32 value, result; };

EMU_PLAIN inline void transpose(Warp& warp) {
    for (u32 lane = 0; lane < 32; ++lane) {
        Turn& mine = *(Turn*)warp.operands[lane];
        u32 row = lane / 4, pair = lane % 4 * 2;
        mine.result = 0;
        for (u32 e = 0; e < 2; ++e) {
            u32 from = ((Turn*)warp.operands[(pair + e) * 4 + row / 2])->value;
            mine.result |= (from >> row % 2 * 16 & 0xffff) << 16 * e;
        }
    }
}

}  // namespace emu

static inline u32 transposed(u32 value, int line = __builtin_LINE()) {
    emu::Turn operands{value, 0};
    emu::collective("transposed", line, &operands, emu::transpose);
    return operands.result;
}

#define EMU_LDMATRIX(name, matrices, transposed)                                                         \
    static inline void name(u32 (&r)[matrices], const void* row, int line = __builtin_LINE()) {          \
        emu::Load operands{r, (const unsigned char*)row};                                                \
        emu::collective(#name, line, &operands, emu::load_matrices<matrices, transposed>);               \
    }
EMU_LDMATRIX(ldmatrix_x4, 4, false)
EMU_LDMATRIX(ldmatrix_x2, 2, false)
EMU_LDMATRIX(ldmatrix_x4_trans, 4, true)
EMU_LDMATRIX(ldmatrix_x2_trans, 2, true)

template <class T> void mma_16816(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, int line = __builtin_LINE()) {
    emu::Product operands{d, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    emu::collective("mma_16816", line, &operands, emu::multiply<T, 16>);
}
template <class T> void mma_1688(float (&d)[4], u32 a0, u32 a1, u32 b0, int line = __builtin_LINE()) {
    emu::Product operands{d, {a0, a1}, {b0}};
    emu::collective("mma_1688", line, &operands, emu::multiply<T, 8>);
}

// ---- What g++ calls under -fsanitize=undefined and =thread, instead of the libraries that belong to them: those would
// have to be loaded before Python, and would print and exit.
#ifdef EMU_SANITIZE
struct EmuPlace { const char* file; u32 line, column; };
extern "C" {
#define EMU_UNDEFINED(name, ...) \
    void __ubsan_handle_##name(EmuPlace* place, ##__VA_ARGS__)
EMU_UNDEFINED(out_of_bounds, u64 index) {
    emu::fail(nullptr, place->line, "index %lld is outside of the array", (i64)index);
}
EMU_UNDEFINED(type_mismatch_v1, u64 address) {
    emu::fail(nullptr, place->line, "misaligned access to address %#llx", address);
}
EMU_UNDEFINED(shift_out_of_bounds, u64, u64 by) { emu::fail(nullptr, place->line, "undefined shift by %lld", (i64)by); }
EMU_UNDEFINED(add_overflow, u64, u64) { emu::fail(nullptr, place->line, "signed overflow in an addition"); }
EMU_UNDEFINED(sub_overflow, u64, u64) { emu::fail(nullptr, place->line, "signed overflow in a subtraction"); }
EMU_UNDEFINED(mul_overflow, u64, u64) { emu::fail(nullptr, place->line, "signed overflow in a multiplication"); }
EMU_UNDEFINED(negate_overflow, u64) { emu::fail(nullptr, place->line, "signed overflow in a negation"); }
EMU_UNDEFINED(divrem_overflow, u64, u64) { emu::fail(nullptr, place->line, "division by zero, or overflow in it"); }

#define EMU_HOOK __attribute__((no_sanitize("thread,undefined")))
#define EMU_ACCESS(bytes)                                                                                                                       \
    EMU_HOOK void __tsan_read##bytes(void* p) { emu::access(p, bytes, false, threadIdx.x, __builtin_return_address(0)); }                       \
    EMU_HOOK void __tsan_write##bytes(void* p) { emu::access(p, bytes, true, threadIdx.x, __builtin_return_address(0)); }                       \
    EMU_HOOK void __tsan_unaligned_read##bytes(void* p) { emu::access(p, bytes, false, threadIdx.x, __builtin_return_address(0)); }             \
    EMU_HOOK void __tsan_unaligned_write##bytes(void* p) { emu::access(p, bytes, true, threadIdx.x, __builtin_return_address(0)); }
EMU_ACCESS(1)
EMU_ACCESS(2)
EMU_ACCESS(4)
EMU_ACCESS(8)
EMU_ACCESS(16)
EMU_HOOK void __tsan_read_range(void* p, long bytes) {
    emu::access(p, bytes, false, threadIdx.x, __builtin_return_address(0));
}
EMU_HOOK void __tsan_write_range(void* p, long bytes) {
    emu::access(p, bytes, true, threadIdx.x, __builtin_return_address(0));
}
EMU_HOOK void __tsan_func_entry(void*) {}
EMU_HOOK void __tsan_func_exit() {}
EMU_HOOK void __tsan_init() {}
}
#endif

// ---- Products of a warpgroup, matrices in shared memory with the 128-byte swizzle; see warpgroup.cuh. A warp computes
// its own 16 rows at once, so nothing shows a result that is used, or an operand that is overwritten, before the wait.
namespace emu {

struct GroupProduct { float* d; u64 a, b; bool add; int columns; const u32* rows; };

template <class E> EMU_PLAIN float element_at(u64 tile, u32 row, u32 k, u32 lane, int line) {
    u64 at = ((tile & 0x3fff) << 4) + row * 128 + k * 2;
    at ^= (at >> 7 & 7) << 4;
    if (at + 2 > EMU_SHARED_BYTES)
        fail(nullptr, line, "shared memory overrun: wgmma of byte %llu of %d", at, EMU_SHARED_BYTES);
    access(smem + at, 2, false, lane, nullptr, line, true);
    u16 bits;
    memcpy(&bits, smem + at, 2);
    return lo_float<E>(bits);
}

template <class E> EMU_PLAIN void multiply_group(Warp& warp) {
    const GroupProduct& first = *(const GroupProduct*)warp.operands[0];
    u32 base = current->index / 32 * 32, row0 = base / 32 % 4 * 16;
    static float a[16][16], b[256][16];
    for (u32 k = 0; k < 16; ++k) {
        for (u32 m = 0; m < 16 && !first.rows; ++m) a[m][k] = element_at<E>(first.a, row0 + m, k, base, warp.line);
        for (int n = 0; n < first.columns; ++n) b[n][k] = element_at<E>(first.b, n, k, base, warp.line);
    }
    for (u32 lane = 0; lane < 32 && first.rows; ++lane)
        for (u32 i = 0; i < 4; ++i) {
            u32 pair = ((const GroupProduct*)warp.operands[lane])->rows[i];
            float* to = &a[lane / 4 + i % 2 * 8][lane % 4 * 2 + i / 2 * 8];
            to[0] = lo_float<E>(pair), to[1] = hi_float<E>(pair);
        }
    for (u32 lane = 0; lane < 32; ++lane) {
        const GroupProduct& mine = *(const GroupProduct*)warp.operands[lane];
        for (int i = 0; i < first.columns / 2; ++i) {
            u32 m = lane / 4 + i / 2 % 2 * 8, n = i / 4 * 8 + lane % 4 * 2 + i % 2;
            float sum = mine.add ? mine.d[i] : 0.0f;
            for (u32 k = 0; k < 16; ++k) sum += a[m][k] * b[n][k];
            mine.d[i] = sum;
        }
    }
}

}  // namespace emu

static inline u64 tile_at(const void* rows, int line = __builtin_LINE()) {
    u64 offset = (u64)rows - (u64)smem;
    if (offset % 16) emu::fail(nullptr, line, "misaligned: a tile at byte %llu of shared memory", offset);
    return offset >> 4;
}
static inline void wgmma_begin() {}
static inline void wgmma_commit() {}
template <int LEFT = 0> void wgmma_wait() {}
static inline void show_tensor_cores() {}
template <int COUNT> void keep(float (&)[COUNT]) {}
template <class T> u32 times2(u32 a, u32 b) {
    return pack2<T>(lo_float<T>(a) * lo_float<T>(b), hi_float<T>(a) * hi_float<T>(b));
}
template <class E, int WIDE> void wgmma(float (&d)[WIDE / 2], u64 a, u64 b, bool add, int line = __builtin_LINE()) {
    emu::GroupProduct operands{d, a, b, add, WIDE, nullptr};
    emu::collective("wgmma", line, &operands, emu::multiply_group<E>);
}
template <class E, int WIDE>
void wgmma(float (&d)[WIDE / 2], const u32 (&a)[4], u64 b, bool add, int line = __builtin_LINE()) {
    emu::GroupProduct operands{d, 0, b, add, WIDE, a};
    emu::collective("wgmma", line, &operands, emu::multiply_group<E>);
}
