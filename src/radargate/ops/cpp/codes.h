// Rotation codes (v_i ⊙ reference_i) P of all slots in one pass over the tokens, and their gradients.
#pragma once

#include <cmath>

#include "call.h"

namespace radargate {

template <typename T> class CodesWork {
 public:
  CodesWork(const Call& call, const PaddedB<T>& B, const Matrix<T>& down, int64_t columns, int64_t chunk, T* d_down, T* d_B)
      : call_(call), B_(B), down_(down), columns_(columns), d_down_(d_down), d_B_(d_B), backward_(call.grad != nullptr) {
    static thread_local Scratch scratch;
    static thread_local Places places;
    places_ = &places;
    const int64_t total = chunk * columns, block = BLOCK * columns, few = BLOCK * std::max(call.codes, call.rank);
    const int64_t every = chunk * call.codes;
    scratch.reserve(Scratch::size_for<T>(total) * 2 + Scratch::size_for<T>(block) * 2 + Scratch::size_for<T>(few) * 3 +
                    Scratch::size_for<T>(every) + Scratch::size_for<T>(call.codes * TILE<T>));
    total_ = scratch.take<T>(total);
    d_total_ = scratch.take<T>(total);
    x_ = scratch.take<T>(block);
    y_ = scratch.take<T>(block);
    coefficients_ = scratch.take<T>(few);
    found_ = scratch.take<T>(few);
    scaled_ = scratch.take<T>(few);
    every_ = scratch.take<T>(every);
    tile_ = scratch.take<T>(call.codes * TILE<T>);
  }

  void chunk(int64_t first, int64_t rows) {
    first_ = first;
    places_->find(call_, first, rows);
    if (!call_.selected) sum_over_experts(rows);
    if (backward_) std::fill(d_total_, d_total_ + rows * columns_, T(0));
    for_blocks(call_, *places_, *this);
    if (backward_ && !call_.selected) pass_total_on(rows);
  }

  template <int ROWS> void block(int64_t expert, const Place* at) {
    const int64_t start = call_.starts[expert], depth = call_.starts[expert + 1] - start;
    for (int r = 0; r < ROWS; ++r)
      for (int64_t p = 0; p < depth; ++p) coefficients_[p * ROWS + r] = code_at(at[r].row)[start + p];
    if (backward_)
      block_backward<ROWS>(expert, start, depth, at);
    else
      block_forward<ROWS>(expert, start, depth, at);
  }

 private:
  typedef Vector<T> V;
  static constexpr int n = Lanes<T>::count;

  const T* code_at(int64_t row) const { return static_cast<const T*>(call_.h) + (first_ + row) * call_.codes; }
  int64_t number(const Place& place) const { return (first_ + place.row) * call_.slots + place.slot; }

  // Calls each(number of rows, first row) for all rows of the chunk, in blocks.
  template <typename Each> void for_rows(int64_t rows, Each each) {
    int64_t row = 0;
    for (; row + BLOCK <= rows; row += BLOCK) each(std::integral_constant<int, BLOCK>(), row);
    for (; row < rows; ++row) each(std::integral_constant<int, 1>(), row);
  }

  // Codes of the chunk's rows, block by block as products with every expert's B take them.
  void turn_codes(int64_t rows) {
    for_rows(rows, [&](auto block, int64_t row) {
      for (int64_t p = 0; p < call_.codes; ++p)
        for (int r = 0; r < block; ++r) every_[row * call_.codes + p * block + r] = code_at(row + r)[p];
    });
  }

  // So many tiles of B stay in the second-level cache while all rows of a chunk meet them.
  int64_t part_tiles() const { return std::max<int64_t>(1, (1 << 18) / (call_.codes * TILE<T>)); }

  void sum_over_experts(int64_t rows) {
    if (call_.total != nullptr) {
      const T* given = static_cast<const T*>(call_.total) + first_ * call_.width;
      for (int64_t row = 0; row < rows; ++row) {
        std::memcpy(total_ + row * columns_, given + row * call_.width, call_.width * sizeof(T));
        std::fill(total_ + row * columns_ + call_.width, total_ + (row + 1) * columns_, T(0));
      }
      return;
    }
    turn_codes(rows);
    for (int64_t tile = 0; tile < B_.tiles; ++tile) {
      const T* from = B_.at(0, tile);
      int64_t step = B_.step(tile);
      if (B_.tiles > part_tiles()) from = in_one_piece(from, step), step = TILE<T>;
      for_rows(rows, [&](auto block, int64_t row) {
        T* to = total_ + row * columns_;
        auto done = [&](int r, int64_t column, V low, V high) {
          store<T>(to + r * columns_ + column, low);
          store<T>(to + r * columns_ + column + n, high);
        };
        product_tiles<T, decltype(block)::value, 1>(
            every_ + row * call_.codes, call_.codes, from, step, tile * TILE<T>, done);
      });
    }
  }

  // A tile of a B that no cache holds, whose rows lie pages apart; the next tile is asked for on the way.
  const T* in_one_piece(const T* from, int64_t step) {
    for (int64_t p = 0; p < call_.codes; ++p, from += step) {
      for (int64_t line = 0; line < TILE<T>; line += 64 / sizeof(T)) __builtin_prefetch(from + TILE<T> + line, 0, 2);
      store<T>(tile_ + p * TILE<T>, load(from));
      store<T>(tile_ + p * TILE<T> + n, load(from + n));
    }
    return tile_;
  }

  template <int ROWS> void block_forward(int64_t expert, int64_t start, int64_t depth, const Place* at) {
    if (call_.selected) {
      for (int r = 0; r < ROWS; ++r) alone_forward(expert, start, depth, at[r]);
      return;
    }
    V v_squares[ROWS] = {}, other_squares[ROWS] = {};
    products<T, ROWS>(coefficients_, depth, B_, start, [&](int r, int64_t column, V low, V high) {
      const T* total = total_ + at[r].row * columns_ + column;
      const V other_low = load(total) - low, other_high = load(total + n) - high;
      store<T>(x_ + r * columns_ + column, low * other_low);
      store<T>(x_ + r * columns_ + column + n, high * other_high);
      if (call_.unit) {
        v_squares[r] += low * low + high * high;
        other_squares[r] += other_low * other_low + other_high * other_high;
      }
    });
    dots<T, ROWS>(x_, columns_, down_, 0, call_.rank, found_);
    T v_square[ROWS], other_square[ROWS];
    sums<T, ROWS>(v_squares, v_square);
    sums<T, ROWS>(other_squares, other_square);
    for (int r = 0; r < ROWS; ++r) {
      if (call_.unit && call_.rounding != nullptr)
        write_code(at[r], found_ + r * call_.rank, v_square[r], beyond_rounding(at[r], other_square[r]), false);
      else if (call_.unit && std::sqrt(other_square[r]) < T(0.5) * std::sqrt(v_square[r]))
        alone_forward(expert, start, depth, at[r]);
      else
        write_code(at[r], found_ + r * call_.rank, v_square[r], other_square[r], false);
    }
  }

  // Where the others' codes are not there, a reference no larger than its rounding counts as none.
  T beyond_rounding(const Place& place, T other_square) const {
    const T least = static_cast<const T*>(call_.rounding)[first_ + place.row];
    return other_square > least * least ? other_square : T(0);
  }

  void write_code(const Place& place, const T* found, T v_square, T other_square, bool alone) {
    T* code = static_cast<T*>(call_.code) + number(place) * call_.rank;
    if (!call_.unit) {
      for (int64_t c = 0; c < call_.rank; ++c) code[c] = found[c] / T(call_.others);
      return;
    }
    const T by_v = inverse_rms(v_square), by_other = inverse_rms(other_square), size = by_v * by_other / T(call_.others);
    for (int64_t c = 0; c < call_.rank; ++c) code[c] = found[c] * size;
    if (T* scales = static_cast<T*>(call_.scales)) {
      scales += number(place) * 3;
      scales[0] = by_v, scales[1] = by_other, scales[2] = T(alone);
    }
  }

  template <int ROWS> void block_backward(int64_t expert, int64_t start, int64_t depth, const Place* at) {
    T by_v[ROWS], by_other[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      const bool alone = scale_gradient(at[r], scaled_ + r, ROWS, by_v[r], by_other[r]) || call_.selected;
      if (!alone) continue;
      alone_backward(expert, start, depth, at[r]);
      for (int64_t p = 0; p < depth; ++p) coefficients_[p * ROWS + r] = 0;  // done: leaves nothing in the block
      for (int64_t c = 0; c < call_.rank; ++c) scaled_[c * ROWS + r] = 0;
      by_v[r] = by_other[r] = 0;
    }
    if (call_.selected) return;
    products<T, ROWS>(coefficients_, depth, B_, start, [&](int r, int64_t column, V low, V high) {
      store<T>(x_ + r * columns_ + column, low);
      store<T>(x_ + r * columns_ + column + n, high);
    });
    products<T, ROWS>(scaled_, call_.rank, down_, 0, [&](int r, int64_t column, V low, V high) {
      const int64_t in_total = at[r].row * columns_ + column, in_block = r * columns_ + column;
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const V g = half ? high : low, v = load(x_ + in_block + half * n);
        const V other = load(total_ + in_total + half * n) - v;
        const V d_other = g * v - other * by_other[r];
        store<T>(x_ + in_block + half * n, v * other);
        store<T>(y_ + in_block + half * n, g * other - v * by_v[r] - d_other);
        T* d_total = d_total_ + in_total + half * n;
        store<T>(d_total, load(d_total) + d_other);
      }
    });
    if (d_down_ != nullptr) accumulate<T, ROWS>(scaled_, call_.rank, x_, columns_, d_down_);
    if (d_B_ != nullptr) accumulate<T, ROWS>(coefficients_, depth, y_, columns_, d_B_ + start * columns_);
    if (call_.d_h == nullptr) return;
    dots<T, ROWS>(y_, columns_, B_, start, depth, found_);
    for (int r = 0; r < ROWS; ++r)
      for (int64_t p = 0; p < depth; ++p) d_code(at[r].row)[start + p] += found_[r * depth + p];
  }

  // The gradient to (v ⊙ reference) P, and how much of v and of the reference the scaling to unit size takes back.
  bool scale_gradient(const Place& place, T* scaled, int step, T& by_v, T& by_other) const {
    const T* grad = static_cast<const T*>(call_.grad) + number(place) * call_.rank;
    by_v = by_other = 0;
    if (!call_.unit) {
      for (int64_t c = 0; c < call_.rank; ++c) scaled[c * step] = grad[c] / T(call_.others);
      return false;
    }
    const T* scales = static_cast<const T*>(call_.scales) + number(place) * 3;
    const T* code = static_cast<const T*>(call_.code) + number(place) * call_.rank;
    T reach = 0;
    for (int64_t c = 0; c < call_.rank; ++c) {
      scaled[c * step] = grad[c] * (scales[0] * scales[1] / T(call_.others));
      reach = multiply_add(grad[c], code[c], reach);
    }
    reach /= T(call_.width);
    by_v = reach * scales[0] * scales[0];
    by_other = reach * scales[1] * scales[1];
    return scales[2] != 0;
  }

  // Where the reference is small beside v, total - v is mostly rounding, and where it is a sum over few experts, total is
  // not needed: such a place stands alone, its reference made of the others' own codes. What follows is for one place and
  // uses x and y, whose turn in the block is over or has not come.
  template <typename Each> void for_others(int64_t expert, int64_t row, Each each) const {  // each(first code, end)
    if (!call_.selected) {
      each(int64_t(0), call_.starts[expert]);
      each(call_.starts[expert + 1], call_.codes);
      return;
    }
    for (int64_t s = 0; s < call_.slots; ++s) {
      const int64_t e = call_.indices[(first_ + row) * call_.slots + s];
      if (e != expert) each(call_.starts[e], call_.starts[e + 1]);
    }
  }
  void reference_of(int64_t expert, int64_t row, T* other) {
    std::fill(other, other + columns_, T(0));
    for_others(expert, row, [&](int64_t from, int64_t to) { add_row(code_at(row) + from, to - from, B_, from, other); });
  }
  void add_row(const T* coefficients, int64_t depth, const Matrix<T>& matrix, int64_t start, T* to) {
    products<T, 1>(coefficients, depth, matrix, start, [&](int, int64_t column, V low, V high) {
      store<T>(to + column, load(to + column) + low);
      store<T>(to + column + n, load(to + column + n) + high);
    });
  }

  void alone_forward(int64_t expert, int64_t start, int64_t depth, const Place& place) {
    T *other = y_, *v = y_ + columns_, *found = scaled_;
    reference_of(expert, place.row, other);
    std::fill(v, v + columns_, T(0));
    add_row(code_at(place.row) + start, depth, B_, start, v);
    V v_squares[1] = {}, other_squares[1] = {};
    for (int64_t i = 0; i < columns_; i += n) {
      const V a = load(v + i), b = load(other + i);
      v_squares[0] += a * a;
      other_squares[0] += b * b;
      store<T>(v + i, a * b);
    }
    T v_square[1], other_square[1];
    sums<T, 1>(v_squares, v_square);
    sums<T, 1>(other_squares, other_square);
    dots<T, 1>(v, columns_, down_, 0, call_.rank, found);
    write_code(place, found, v_square[0], other_square[0], true);
  }

  void alone_backward(int64_t expert, int64_t start, int64_t depth, const Place& place) {
    std::vector<T> scaled(call_.rank), back(std::max(depth, call_.codes));
    T by_v, by_other;
    scale_gradient(place, scaled.data(), 1, by_v, by_other);
    T *other = x_, *v = y_, *g = y_ + columns_;
    reference_of(expert, place.row, other);
    std::fill(v, v + 2 * columns_, T(0));
    add_row(code_at(place.row) + start, depth, B_, start, v);
    add_row(scaled.data(), call_.rank, down_, 0, g);
    for (int64_t i = 0; i < columns_; ++i) {
      const T own = v[i], reference = other[i];
      v[i] = multiply_add(g[i], reference, -own * by_v);
      g[i] = multiply_add(g[i], own, -reference * by_other);
      other[i] = own * reference;
    }
    if (d_down_ != nullptr) accumulate<T, 1>(scaled.data(), call_.rank, other, columns_, d_down_);
    auto pass_on = [&](const T* gradient, int64_t from, int64_t to) {  // to the codes and rows of B of one or more experts
      if (d_B_ != nullptr)
        accumulate<T, 1>(code_at(place.row) + from, to - from, gradient, columns_, d_B_ + from * columns_);
      if (call_.d_h == nullptr) return;
      dots<T, 1>(gradient, columns_, B_, from, to - from, back.data());
      for (int64_t p = from; p < to; ++p) d_code(place.row)[p] += back[p - from];
    };
    pass_on(v, start, start + depth);
    for_others(expert, place.row, [&](int64_t from, int64_t to) { pass_on(g, from, to); });
  }

  void pass_total_on(int64_t rows) {
    if (call_.total != nullptr) {
      if (T* d_total = static_cast<T*>(call_.d_total))
        for (int64_t row = 0; row < rows; ++row)
          std::memcpy(d_total + (first_ + row) * call_.width, d_total_ + row * columns_, call_.width * sizeof(T));
      return;
    }
    if (call_.d_h == nullptr && d_B_ == nullptr) return;
    if (d_B_ != nullptr)
      for_rows(rows, [&](auto block, int64_t row) {
        const T* coefficients = every_ + row * call_.codes;
        accumulate<T, decltype(block)::value>(coefficients, call_.codes, d_total_ + row * columns_, columns_, d_B_);
      });
    if (call_.d_h == nullptr) return;
    for (int64_t tile = 0; tile < B_.tiles; tile += part_tiles()) {
      const Matrix<T> part = B_.part(tile, std::min(tile + part_tiles(), B_.tiles));
      for_rows(rows, [&](auto block, int64_t row) {
        dots<T, decltype(block)::value>(d_total_ + row * columns_ + tile * TILE<T>, columns_, part, 0, call_.codes, found_);
        for (int r = 0; r < block; ++r)
          for (int64_t p = 0; p < call_.codes; ++p) d_code(row + r)[p] += found_[r * call_.codes + p];
      });
    }
  }

  T* d_code(int64_t row) const { return static_cast<T*>(call_.d_h) + (first_ + row) * call_.codes; }
  T inverse_rms(T square) const { return square > 0 ? std::sqrt(T(call_.width)) / std::sqrt(square) : T(0); }

  const Call& call_;
  const PaddedB<T>& B_;
  const Matrix<T>& down_;
  const int64_t columns_;
  T *const d_down_, *const d_B_;
  const bool backward_;
  Places* places_;
  int64_t first_ = 0;
  T *total_, *d_total_, *x_, *y_, *coefficients_, *found_, *scaled_, *every_, *tile_;
};

// Forward where call.grad is null.
template <typename T> void rotation_codes(const Call& call) {
  const T* given = static_cast<const T*>(call.down);
  PaddedB<T> B(call);
  PaddedRows<T> down(call.rank, call.width);
  transpose(given, call.width, call.rank, down);
  const int64_t columns = down.columns, chunk = chunk_rows(columns);
  SpanSums<T> d_down(call.d_down, span_count(call, chunk), call.rank, columns);
  SpanSums<T> d_B(call.d_B, span_count(call, chunk), call.codes, columns);
  for_spans(call, chunk, [&](int64_t span, int64_t first, int64_t end) {
    CodesWork<T> work(call, B, down, columns, chunk, d_down.of(span), d_B.of(span));
    for (; first < end; first += chunk) work.chunk(first, std::min(chunk, end - first));
  });
  d_down.total([&](int64_t c, const T* sum) {
    for (int64_t i = 0; i < call.width; ++i) static_cast<T*>(call.d_down)[i * call.rank + c] = sum[i];
  });
  d_B.total([&](int64_t p, const T* sum) {
    std::memcpy(static_cast<T*>(call.d_B) + p * call.width, sum, call.width * sizeof(T));
  });
}

}  // namespace radargate
