// What a thread of a 3x3 convolution on channels-last maps owns: four neighbouring channels, 8
// bytes of a cell, and their taps.

constexpr int CH = 4;

struct Vector { float v[CH]; };

__device__ __forceinline__ Vector widened(uint2 raw) {
  return {{lo_float<T>(raw.x), hi_float<T>(raw.x), lo_float<T>(raw.y), hi_float<T>(raw.y)}};
}

// By tap and channel, from nine of one channel after the other: 18 words.
__device__ __forceinline__ void read_taps(float (&weight)[9][CH], const T* __restrict__ w, int channel, int flip) {
  u32 raw[18];
#pragma unroll
  for (int i = 0; i < 9; i++) {
    const uint2 two = __ldg((const uint2*)(w + (i64)channel * 9) + i);
    raw[2 * i] = two.x, raw[2 * i + 1] = two.y;
  }
#pragma unroll
  for (int tap = 0; tap < 9; tap++)
#pragma unroll
    for (int k = 0; k < CH; k++) {
      const int straight = 9 * k + tap, turned = 9 * k + 8 - tap;
      const u32 a = raw[straight / 2], b = raw[turned / 2];
      weight[tap][k] =
          flip ? (turned % 2 ? hi_float<T>(b) : lo_float<T>(b)) : (straight % 2 ? hi_float<T>(a) : lo_float<T>(a));
    }
}
