// Vectors of columns, and the three products everything else is made of. A block is 1, 2, 4 or 8 rows (tokens that share
// an expert), a tile two vectors of columns: their partial sums fit the registers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

namespace radargate {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, BLOCK = 8;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, BLOCK = 4;
#else
constexpr int VECTOR_BYTES = 16, BLOCK = 4;
#endif

template <typename T> struct Lanes {
  static constexpr int count = VECTOR_BYTES / sizeof(T);
  typedef T Vector __attribute__((vector_size(VECTOR_BYTES)));
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Integer;
  typedef Integer Mask __attribute__((vector_size(VECTOR_BYTES)));
};
template <typename T> using Vector = typename Lanes<T>::Vector;
template <typename T> constexpr int64_t TILE = 2 * Lanes<T>::count;

template <typename T> inline Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <typename T> inline void store(T* to, Vector<T> v) { std::memcpy(to, &v, sizeof v); }

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__aarch64__)
constexpr bool FUSED_MULTIPLY = true;
#else
constexpr bool FUSED_MULTIPLY = false;
#endif

// a · b + c of numbers, rounded once where the processor can. Left to the compiler, a loop rounds once as numbers and twice
// as vectors, and which of them runs depends on where its arrays lie.
template <typename T> inline T multiply_add(T a, T b, T c) { return FUSED_MULTIPLY ? std::fma(a, b, c) : a * b + c; }

// Lanes first, first + step, first + 2 step ... of (a, b) seen as one row, in pairs from (a, b) where `pairwise`.
template <typename T, size_t... i>
inline Vector<T> every_other(Vector<T> a, Vector<T> b, int first, std::index_sequence<i...>) {
#if defined(__clang__)
  const T both[] = {a[i]..., b[i]...};
  return Vector<T>{both[2 * i + first]...};
#else
  typedef typename Lanes<T>::Integer I;
  return __builtin_shuffle(a, b, typename Lanes<T>::Mask{I(2 * i + first)...});
#endif
}
template <typename T, size_t... i>
inline Vector<T> zip(Vector<T> a, Vector<T> b, int first, std::index_sequence<i...>) {
  constexpr int n = Lanes<T>::count;
#if defined(__clang__)
  const T both[] = {a[i]..., b[i]...};
  return Vector<T>{both[first + i / 2 + (i % 2) * n]...};
#else
  typedef typename Lanes<T>::Integer I;
  return __builtin_shuffle(a, b, typename Lanes<T>::Mask{I(first + i / 2 + (i % 2) * n)...});
#endif
}
template <typename T> using All = std::make_index_sequence<Lanes<T>::count>;
template <typename T> inline Vector<T> evens(Vector<T> a, Vector<T> b) { return every_other<T>(a, b, 0, All<T>{}); }
template <typename T> inline Vector<T> odds(Vector<T> a, Vector<T> b) { return every_other<T>(a, b, 1, All<T>{}); }
template <typename T> inline Vector<T> zip_low(Vector<T> a, Vector<T> b) { return zip<T>(a, b, 0, All<T>{}); }
template <typename T> inline Vector<T> zip_high(Vector<T> a, Vector<T> b) {
  return zip<T>(a, b, Lanes<T>::count / 2, All<T>{});
}

// The sum over the lanes of each of COUNT vectors, by a tree of pairwise sums.
template <typename T, int COUNT> inline void sums(const Vector<T>* rows, T* out) {
  constexpr int n = Lanes<T>::count;
  T result[n];
  for (int base = 0; base < COUNT; base += n) {
    Vector<T> level[n];
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) level[i] = base + i < COUNT ? rows[base + i] : Vector<T>{};
#pragma GCC unroll 4
    for (int width = n / 2; width >= 1; width /= 2)
#pragma GCC unroll 8
      for (int i = 0; i < width; ++i)
        level[i] = evens<T>(level[2 * i], level[2 * i + 1]) + odds<T>(level[2 * i], level[2 * i + 1]);
    store<T>(result, level[0]);
    for (int i = 0; i < n && base + i < COUNT; ++i) out[base + i] = result[i];
  }
}

// A matrix cut into tiles of columns; columns that do not fill a tile come from a copy padded with zeros.
template <typename T> struct Matrix {
  const T* body;
  int64_t stride;
  const T* tail;
  int64_t whole, tiles;

  const T* at(int64_t row, int64_t tile) const {
    return tile < whole ? body + row * stride + tile * TILE<T> : tail + row * TILE<T>;
  }
  int64_t step(int64_t tile) const { return tile < whole ? stride : TILE<T>; }
  Matrix part(int64_t from, int64_t to) const {  // tiles `from` to `to` of it
    return {body + from * TILE<T>, stride, tail, std::max<int64_t>(std::min(whole, to) - from, 0), to - from};
  }
};

template <typename T, int ROWS, int TILES, typename Done>
inline void product_tiles(const T* coefficients, int64_t depth, const T* from, int64_t step, int64_t column, Done& done) {
  constexpr int n = Lanes<T>::count;
  Vector<T> sum[ROWS][2 * TILES] = {};
  for (int64_t k = 0; k < depth; ++k, from += step, coefficients += ROWS) {
    Vector<T> b[2 * TILES];
#pragma GCC unroll 8
    for (int v = 0; v < 2 * TILES; ++v) b[v] = load(from + v * n);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < 2 * TILES; ++v) sum[r][v] += b[v] * coefficients[r];
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int t = 0; t < TILES; ++t) done(r, column + t * TILE<T>, sum[r][2 * t], sum[r][2 * t + 1]);
}

// coefficients [depth, ROWS]ᵀ times `depth` rows of a matrix; done(row, column, two vectors) gets every tile.
template <typename T, int ROWS, typename Done>
inline void products(const T* coefficients, int64_t depth, const Matrix<T>& matrix, int64_t first, Done done) {
  int64_t tile = 0;
  if (ROWS == 1)  // one row alone needs more sums under way
    for (; tile + 4 <= matrix.whole; tile += 4)
      product_tiles<T, ROWS, ROWS == 1 ? 4 : 1>(
          coefficients, depth, matrix.at(first, tile), matrix.stride, tile * TILE<T>, done);
  for (; tile < matrix.tiles; ++tile)
    product_tiles<T, ROWS, 1>(coefficients, depth, matrix.at(first, tile), matrix.step(tile), tile * TILE<T>, done);
}

// out [ROWS, count] = rows [ROWS, columns] times the transpose of `count` rows of a matrix.
template <typename T, int ROWS>
inline void dots(const T* rows, int64_t stride, const Matrix<T>& matrix, int64_t first, int64_t count, T* out) {
  constexpr int n = Lanes<T>::count, HIGH = ROWS < 4 ? ROWS : 4, WIDE = 4;
  for (int64_t c0 = 0; c0 < count; c0 += WIDE) {
    const int64_t last = std::min<int64_t>(count - c0, WIDE) - 1;
    for (int r0 = 0; r0 < ROWS; r0 += HIGH) {
      Vector<T> sum[HIGH * WIDE] = {};
      auto tile_dots = [&](int64_t tile) {
        const T* x = rows + r0 * stride + tile * TILE<T>;
        const T* y = matrix.at(first + c0, tile);
        const int64_t step = matrix.step(tile);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          Vector<T> b[WIDE];
#pragma GCC unroll 4
          for (int c = 0; c < WIDE; ++c) b[c] = load(y + std::min<int64_t>(c, last) * step + half * n);
#pragma GCC unroll 4
          for (int r = 0; r < HIGH; ++r) {
            const Vector<T> a = load(x + r * stride + half * n);
#pragma GCC unroll 4
            for (int c = 0; c < WIDE; ++c) sum[r * WIDE + c] += a * b[c];
          }
        }
      };
      for (int64_t tile = 0; tile < matrix.tiles; ++tile) tile_dots(tile);
      T found[HIGH * WIDE];
      sums<T, HIGH * WIDE>(sum, found);
      for (int r = 0; r < HIGH; ++r)
        for (int64_t c = 0; c <= last; ++c) out[(r0 + r) * count + c0 + c] = found[r * WIDE + c];
    }
  }
}

// into [depth, stride] += coefficients [depth, ROWS] times rows [ROWS, stride].
template <typename T, int ROWS>
inline void accumulate(const T* coefficients, int64_t depth, const T* rows, int64_t stride, T* into) {
  constexpr int n = Lanes<T>::count;
  for (int64_t column = 0; column < stride; column += TILE<T>) {
    Vector<T> x[ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      x[r][0] = load(rows + r * stride + column);
      x[r][1] = load(rows + r * stride + column + n);
    }
    for (int64_t k = 0; k < depth; ++k) {
      T* to = into + k * stride + column;
      Vector<T> low = load(to), high = load(to + n);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        low += x[r][0] * coefficients[k * ROWS + r];
        high += x[r][1] * coefficients[k * ROWS + r];
      }
      store<T>(to, low);
      store<T>(to + n, high);
    }
  }
}

// Memory that is kept between calls: pages fresh from the system cost more than the work of a short call.
class Scratch {
 public:
  void reserve(size_t bytes) {
    bytes += 64;
    if (bytes > held_) {
      memory_.reset(new char[bytes]);
      held_ = bytes;
    }
    used_ = (64 - reinterpret_cast<uintptr_t>(memory_.get()) % 64) % 64;
  }
  template <typename T> T* take(int64_t count) {
    T* found = reinterpret_cast<T*>(memory_.get() + used_);
    used_ += size_for<T>(count);
    return found;
  }
  template <typename T> static size_t size_for(int64_t count) { return (count * sizeof(T) + 63) / 64 * 64; }

 private:
  std::unique_ptr<char[]> memory_;
  size_t held_ = 0, used_ = 0;
};

}  // namespace radargate
