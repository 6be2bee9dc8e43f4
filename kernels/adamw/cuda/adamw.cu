// AdamW for many tensors in one launch. A block takes CHUNK elements of one of them.
//
// Defined at compile time: MOST tensors of a launch, CHUNK, THREADS.

// all float32; `end` counts blocks, those of the tensors before included
struct Tensors {
  float* weight[MOST];
  const float* gradient[MOST];
  float *mean[MOST], *square[MOST];
  int size[MOST], end[MOST];
};

struct Rates { float size, keep, mean, square, kept_square, rate, eps; };

__device__ __forceinline__ void update(float& w, float g, float& m, float& v, const Rates& r) {
  m += r.mean * (g - m);
  v = r.kept_square * v + r.square * g * g;
  w = r.keep * w - r.size * m / (r.rate * sqrtf(v) + r.eps);
}

// step: the number of this step, from 1. log_mean and log_square: of the factors that mean and square keep.
extern "C" __global__ void __launch_bounds__(THREADS)
    adamw(const __grid_constant__ Tensors tensors, const float* __restrict__ step, int count, float learning_rate,
          float keep, float mean, float square, float kept_square, float log_mean, float log_square, float eps) {
  int low = 0, high = count - 1;                         // the first tensor that ends after this block
  while (low < high) {
    const int middle = (low + high) / 2;
    if (tensors.end[middle] > (int)blockIdx.x) high = middle;
    else low = middle + 1;
  }
  const int size = tensors.size[low], begin = (blockIdx.x - (low ? tensors.end[low - 1] : 0)) * CHUNK,
            end = min(begin + CHUNK, size);
  float *weight = tensors.weight[low], *means = tensors.mean[low], *squares = tensors.square[low];
  const float* gradient = tensors.gradient[low];
  const float n = *step;
  const Rates r = {learning_rate / -expm1f(n * log_mean), keep, mean, square, kept_square,
                   1.f / sqrtf(-expm1f(n * log_square)),  eps};
  const bool aligned = (((u64)weight | (u64)means | (u64)squares | (u64)gradient) & 15) == 0;
  const int whole = aligned ? end - (end - begin) % 4 : begin;
#pragma unroll 2
  for (int i = begin + 4 * threadIdx.x; i < whole; i += 4 * THREADS) {
    float4 w = *(float4*)(weight + i), m = *(float4*)(means + i), v = *(float4*)(squares + i);
    const float4 g = *(const float4*)(gradient + i);
    update(w.x, g.x, m.x, v.x, r), update(w.y, g.y, m.y, v.y, r), update(w.z, g.z, m.z, v.z, r),
        update(w.w, g.w, m.w, v.w, r);
    *(float4*)(weight + i) = w, *(float4*)(means + i) = m, *(float4*)(squares + i) = v;
  }
  for (int i = whole + threadIdx.x; i < end; i += THREADS) update(weight[i], gradient[i], means[i], squares[i], r);
}
