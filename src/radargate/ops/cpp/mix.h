// The update Σ_i g_i R(a_i Q) v_i of all slots in one pass over the tokens, and its gradients.
#pragma once

#include "call.h"
#include "elementary.h"

namespace radargate {

template <typename T> class MixWork {
 public:
  MixWork(const Call& call, const PaddedB<T>& B, const PaddedRows<T>& up, int64_t columns, int64_t chunk, T* d_up,
          T* d_B)
      : call_(call), B_(B), up_(up), columns_(columns), half_(up.columns), d_up_(d_up), d_B_(d_B),
        backward_(call.grad != nullptr) {
    static thread_local Scratch scratch;
    static thread_local Places places;
    places_ = &places;
    const int64_t kept = chunk * columns, block = BLOCK * columns, angles = BLOCK * half_;
    const int64_t few = BLOCK * std::max(call.codes, call.rank);
    scratch.reserve(Scratch::size_for<T>(kept) + Scratch::size_for<T>(block) + Scratch::size_for<T>(angles) * 4 +
                    Scratch::size_for<T>(few) * 3);
    kept_ = scratch.take<T>(kept);
    back_ = scratch.take<T>(block);
    alpha_ = scratch.take<T>(angles);
    sine_ = scratch.take<T>(angles);
    cosine_ = scratch.take<T>(angles);
    d_alpha_ = scratch.take<T>(angles);
    std::fill(d_alpha_, d_alpha_ + angles, T(0));
    coefficients_ = scratch.take<T>(few);
    rotation_ = scratch.take<T>(few);
    found_ = scratch.take<T>(few);
  }

  void chunk(int64_t first, int64_t rows) {
    first_ = first;
    places_->find(call_, first, rows);
    if (backward_)
      read_gradient(rows);
    else
      std::fill(kept_, kept_ + rows * columns_, T(0));
    for_blocks(call_, *places_, *this);
    if (!backward_) write_update(rows);
  }

  template <int ROWS> void block(int64_t expert, const Place* at) {
    const int64_t start = call_.starts[expert], depth = call_.starts[expert + 1] - start;
    for (int r = 0; r < ROWS; ++r) {
      const T *codes = code_at(at[r].row), weight = static_cast<const T*>(call_.weights)[number(at[r])];
      const T* rotation = static_cast<const T*>(call_.rotation) + number(at[r]) * call_.rank;
      for (int64_t p = 0; p < depth; ++p) coefficients_[p * ROWS + r] = codes[start + p] * weight;
      for (int64_t c = 0; c < call_.rank; ++c) rotation_[c * ROWS + r] = rotation[c];
    }
    products<T, ROWS>(rotation_, call_.rank, up_, 0, [&](int r, int64_t column, V low, V high) {
      store<T>(alpha_ + r * half_ + column, low);
      store<T>(alpha_ + r * half_ + column + n, high);
    });
    if (call_.bound) bound_angles(alpha_, ROWS * half_);
    sine_cosine(alpha_, sine_, cosine_, ROWS * half_);
    if (backward_)
      block_backward<ROWS>(start, depth, at);
    else
      block_forward<ROWS>(start, depth, at);
  }

 private:
  typedef Vector<T> V;
  static constexpr int n = Lanes<T>::count;

  const T* code_at(int64_t row) const { return static_cast<const T*>(call_.h) + (first_ + row) * call_.codes; }
  int64_t number(const Place& place) const { return (first_ + place.row) * call_.slots + place.slot; }

  // What is kept for each row of the chunk, the update or its gradient: in every tile the first coordinates of all
  // pairs, then the second ones.
  template <int ROWS> void block_forward(int64_t start, int64_t depth, const Place* at) {
    products<T, ROWS>(coefficients_, depth, B_, start, [&](int r, int64_t column, V low, V high) {
      const V even = evens<T>(low, high), odd = odds<T>(low, high);
      const V s = load(sine_ + r * half_ + column / 2), c = load(cosine_ + r * half_ + column / 2);
      T* kept = kept_ + at[r].row * columns_ + column;
      store<T>(kept, load(kept) + (even * c - odd * s));
      store<T>(kept + n, load(kept + n) + (even * s + odd * c));
    });
  }

  template <int ROWS> void block_backward(int64_t start, int64_t depth, const Place* at) {
    products<T, ROWS>(coefficients_, depth, B_, start, [&](int r, int64_t column, V low, V high) {
      const V even = evens<T>(low, high), odd = odds<T>(low, high);
      const V s = load(sine_ + r * half_ + column / 2), c = load(cosine_ + r * half_ + column / 2);
      const T* grad = kept_ + at[r].row * columns_ + column;
      const V g_even = load(grad), g_odd = load(grad + n);
      // turning the gradient back gives that of v; its part across v is what a further turn changes
      const V back_even = g_even * c + g_odd * s, back_odd = g_odd * c - g_even * s;
      V d_alpha = even * back_odd - odd * back_even;
      if (call_.bound) {
        const V share = load(alpha_ + r * half_ + column / 2) * T(1 / PI);
        d_alpha *= T(1) - share * share;
      }
      store<T>(d_alpha_ + r * half_ + column / 2, d_alpha);
      store<T>(back_ + r * columns_ + column, zip_low<T>(back_even, back_odd));
      store<T>(back_ + r * columns_ + column + n, zip_high<T>(back_even, back_odd));
    });
    if (d_up_ != nullptr) accumulate<T, ROWS>(rotation_, call_.rank, d_alpha_, half_, d_up_);
    if (call_.d_rotation != nullptr) {
      dots<T, ROWS>(d_alpha_, half_, up_, 0, call_.rank, found_);
      for (int r = 0; r < ROWS; ++r) {
        T* to = static_cast<T*>(call_.d_rotation) + number(at[r]) * call_.rank;
        for (int64_t c = 0; c < call_.rank; ++c) to[c] = found_[r * call_.rank + c];
      }
    }
    if (d_B_ != nullptr) accumulate<T, ROWS>(coefficients_, depth, back_, columns_, d_B_ + start * columns_);
    if (call_.d_h == nullptr && call_.d_weights == nullptr) return;
    dots<T, ROWS>(back_, columns_, B_, start, depth, found_);
    for (int r = 0; r < ROWS; ++r) {
      const T weight = static_cast<const T*>(call_.weights)[number(at[r])];
      const T *codes = code_at(at[r].row) + start, *found = found_ + r * depth;
      T d_weight = 0;
      for (int64_t p = 0; p < depth; ++p) d_weight = multiply_add(codes[p], found[p], d_weight);
      if (T* to = static_cast<T*>(call_.d_weights)) to[number(at[r])] = d_weight;
      if (T* to = static_cast<T*>(call_.d_h))
        for (int64_t p = 0; p < depth; ++p) {
          T& d_code = to[(first_ + at[r].row) * call_.codes + start + p];
          d_code = multiply_add(found[p], weight, d_code);
        }
    }
  }

  void read_gradient(int64_t rows) {
    const T* grad = static_cast<const T*>(call_.grad) + first_ * call_.width;
    for (int64_t row = 0; row < rows; ++row, grad += call_.width)
      for (int64_t column = 0; column < columns_; column += TILE<T>) {
        T tile[TILE<T>] = {};
        std::memcpy(tile, grad + column, std::min(TILE<T>, call_.width - column) * sizeof(T));
        T* kept = kept_ + row * columns_ + column;
        store<T>(kept, evens<T>(load(tile), load(tile + n)));
        store<T>(kept + n, odds<T>(load(tile), load(tile + n)));
      }
  }

  void write_update(int64_t rows) {
    T* update = static_cast<T*>(call_.update) + first_ * call_.width;
    const T* onto = call_.onto == nullptr ? nullptr : static_cast<const T*>(call_.onto) + first_ * call_.width;
    for (int64_t row = 0; row < rows; ++row, update += call_.width)
      for (int64_t column = 0; column < columns_; column += TILE<T>) {
        const T* kept = kept_ + row * columns_ + column;
        T tile[TILE<T>];
        store<T>(tile, zip_low<T>(load(kept), load(kept + n)));
        store<T>(tile + n, zip_high<T>(load(kept), load(kept + n)));
        const int64_t count = std::min(TILE<T>, call_.width - column);
        if (onto != nullptr)
          for (int64_t i = 0; i < count; ++i) tile[i] += onto[row * call_.width + column + i];
        std::memcpy(update + column, tile, count * sizeof(T));
      }
  }

  const Call& call_;
  const PaddedB<T>& B_;
  const PaddedRows<T>& up_;
  const int64_t columns_, half_;
  T *const d_up_, *const d_B_;
  const bool backward_;
  Places* places_;
  int64_t first_ = 0;
  T *kept_, *back_, *alpha_, *sine_, *cosine_, *d_alpha_, *coefficients_, *rotation_, *found_;
};

// Forward where call.grad is null.
template <typename T> void mix(const Call& call) {
  PaddedB<T> B(call);
  const int64_t columns = B.tiles * TILE<T>, chunk = chunk_rows(columns), pairs = call.width / 2;
  PaddedRows<T> up(call.rank, columns / 2);  // an odd last coordinate is a pair with nothing, turned by no angle
  if (pairs)
    for (int64_t c = 0; c < call.rank; ++c)
      std::memcpy(up.row(c), static_cast<const T*>(call.up) + c * pairs, pairs * sizeof(T));
  SpanSums<T> d_up(call.d_up, span_count(call, chunk), call.rank, up.columns);
  SpanSums<T> d_B(call.d_B, span_count(call, chunk), call.codes, columns);
  for_spans(call, chunk, [&](int64_t span, int64_t first, int64_t end) {
    MixWork<T> work(call, B, up, columns, chunk, d_up.of(span), d_B.of(span));
    for (; first < end; first += chunk) work.chunk(first, std::min(chunk, end - first));
  });
  d_up.total([&](int64_t c, const T* sum) {
    if (pairs) std::memcpy(static_cast<T*>(call.d_up) + c * pairs, sum, pairs * sizeof(T));
  });
  d_B.total([&](int64_t p, const T* sum) {
    std::memcpy(static_cast<T*>(call.d_B) + p * call.width, sum, call.width * sizeof(T));
  });
}

}  // namespace radargate
