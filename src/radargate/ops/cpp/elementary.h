// sin, cos and tanh of whole arrays, in loops that compilers turn into vectors; within two units in the last place.
#pragma once

#include "vectors.h"

namespace radargate {

constexpr double PI = 3.14159265358979323846;

template <typename T> struct Constants;

template <> struct Constants<float> {
  typedef int32_t Integer;
  static constexpr float round_shift = 12582912.0f;  // 1.5 · 2²³: adding it rounds to an integer
  static constexpr float half_pi[3] = {0x1.921fb6p+0f, -0x1.777a5cp-25f, -0x1.ee59dap-50f};
  static constexpr float largest = 1e5f;
  static constexpr float sine[3] = {-1.9515295891e-4f, 8.3321608736e-3f, -1.6666654611e-1f};
  static constexpr float cosine[3] = {2.443315711809948e-5f, -1.388731625493765e-3f, 4.166664568298827e-2f};
  static constexpr float exponential[6] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                           4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
  static constexpr float log_2[2] = {0.693359375f, -2.12194440e-4f};
  static constexpr float saturated = 10.0f;
  static constexpr int mantissa = 23, bias = 127;

  static float small_tanh(float z) {  // (tanh(x) - x) / x³ for |x| < 0.625, z = x²
    return (((-5.70498872745e-3f * z + 2.06390887954e-2f) * z - 5.37397155531e-2f) * z + 1.33314422036e-1f) * z -
           3.33332819422e-1f;
  }
};

template <> struct Constants<double> {
  typedef int64_t Integer;
  static constexpr double round_shift = 6755399441055744.0;  // 1.5 · 2⁵²
  static constexpr double half_pi[3] = {0x1.921fb54442d18p+0, 0x1.1a62633145c07p-54, -0x1.f1976b7ed8fbcp-110};
  static constexpr double largest = 1e8;
  static constexpr double sine[6] = {1.58969099521155010221e-10, -2.50507602534068634195e-8, 2.75573137070700676789e-6,
                                     -1.98412698298579493134e-4, 8.33333333332248946124e-3, -1.66666666666666324348e-1};
  static constexpr double cosine[6] = {-1.13596475577881948265e-11, 2.08757232129817482790e-9,
                                       -2.75573143513906633035e-7,  2.48015872894767294178e-5,
                                       -1.38888888888741095749e-3,  4.16666666666666019037e-2};
  static constexpr double exponential[12] = {
      1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
      1.0 / 5040,       1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      1.0 / 2};
  static constexpr double log_2[2] = {6.93145751953125e-1, 1.42860682030941723212e-6};
  static constexpr double saturated = 20.0;
  static constexpr int mantissa = 52, bias = 1023;

  static double small_tanh(double z) {
    const double p = (-9.64399179425052238628e-1 * z - 9.92877231001918586564e1) * z - 1.61468768441708447952e3;
    const double q = ((z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3) * z + 4.84406305325125486048e3;
    return p / q;
  }
};

template <typename To, typename From> inline To same_bits(From from) {
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <typename T, size_t n> inline T polynomial(const T (&highest_first)[n], T x) {
  T value = highest_first[0];
  for (size_t i = 1; i < n; ++i) value = value * x + highest_first[i];
  return value;
}

template <typename T>
inline void sine_cosine(const T* __restrict x, T* __restrict sine, T* __restrict cosine, int64_t count) {
  typedef Constants<T> C;
  typedef typename C::Integer Integer;
  Integer outside = !FUSED_MULTIPLY;  // the reduction below then loses digits: every element goes the slow way
  for (int64_t i = 0; i < count; ++i) {
    const T shifted = x[i] * T(2 / PI) + C::round_shift;
    const T turns = shifted - C::round_shift;
    const Integer quadrant = same_bits<Integer>(shifted);
    const T near = multiply_add(-turns, C::half_pi[0], x[i]);
    const T r = multiply_add(-turns, C::half_pi[2], multiply_add(-turns, C::half_pi[1], near));
    const T z = r * r;
    const T s = r + r * z * polynomial(C::sine, z);
    const T c = (T(1) - T(0.5) * z) + z * z * polynomial(C::cosine, z);
    const T straight = (quadrant & 1) ? c : s, across = (quadrant & 1) ? s : c;
    sine[i] = (quadrant & 2) ? -straight : straight;
    cosine[i] = ((quadrant + 1) & 2) ? -across : across;
    outside |= !(std::fabs(x[i]) <= C::largest);
  }
  if (!outside) return;
  for (int64_t i = 0; i < count; ++i)
    if (!FUSED_MULTIPLY || !(std::fabs(x[i]) <= C::largest)) {
      sine[i] = std::sin(x[i]);
      cosine[i] = std::cos(x[i]);
    }
}

// π tanh(x / π), in place.
template <typename T> inline void bound_angles(T* x, int64_t count) {
  typedef Constants<T> C;
  typedef std::make_unsigned_t<typename C::Integer> Bits;
  for (int64_t i = 0; i < count; ++i) {
    const T a = x[i] * T(1 / PI);
    const T size = std::fabs(a);
    const T kept = size > C::saturated ? C::saturated : size;
    const T shifted = kept * T(2 / 0.693147180559945309417) + C::round_shift;
    const T power = shifted - C::round_shift;
    const T r = (2 * kept - power * C::log_2[0]) - power * C::log_2[1];
    const T fraction = r * r * polynomial(C::exponential, r) + r + T(1);
    const Bits exponent = same_bits<Bits>(shifted) - same_bits<Bits>(C::round_shift) + C::bias;
    const T e = fraction * same_bits<T>(Bits(exponent << C::mantissa));
    const T far = T(1) - T(2) / (e + T(1));
    const T z = kept * kept;
    const T near = kept + kept * z * C::small_tanh(z);
    const T value = kept < T(0.625) ? near : far;
    x[i] = T(PI) * (a < 0 ? -value : value);
  }
}

}  // namespace radargate
