// x times the normal distribution function of x: the polynomial of gpu_kernels.py, within 4.2e-6 of it.
__device__ __forceinline__ float gelu(float x) {
  const float near = fminf(fmaxf(x, -4.5f), 4.5f), square = near * near - 10.125f;
  float value = square * -1.62840143e-12f + 4.49560907e-11f;
  value = value * square - 5.76862109e-10f;
  value = value * square + 8.95420455e-9f;
  value = value * square - 1.72314548e-7f;
  value = value * square + 2.7462706e-6f;
  value = value * square - 3.87995799e-5f;
  value = value * square + 0.000532959166f;
  value = value * square - 0.0076230724f;
  value = value * square + 0.156906069f;
  return x * (near * value + 0.5f);
}
