// Codes (x A_i) ⊙ σ of chosen experts only, and their gradient to x. Of the call's fields `h` is x here, `B` is A,
// `weights` σ, `code` the codes [tokens, codes] (zeros where nothing is chosen: they come cleared), `grad` theirs, and
// `d_h` is the gradient to x.
#pragma once

#include "call.h"

namespace radargate {

constexpr int64_t SHRINK_ROWS = 256;

template <typename T> class ShrinkWork {
 public:
  ShrinkWork(const Call& call, const PaddedB<T>& A, int64_t columns, int64_t chunk)
      : call_(call), A_(A), columns_(columns), backward_(call.grad != nullptr) {
    static thread_local Scratch scratch;
    static thread_local Places places;
    places_ = &places;
    const int64_t kept = (backward_ ? chunk : BLOCK) * columns, few = BLOCK * call.codes;
    scratch.reserve(Scratch::size_for<T>(kept) + Scratch::size_for<T>(few));
    kept_ = scratch.take<T>(kept);
    few_ = scratch.take<T>(few);
  }

  void chunk(int64_t first, int64_t rows) {
    first_ = first;
    places_->find(call_, first, rows);
    std::fill(kept_, kept_ + (backward_ ? rows : BLOCK) * columns_, T(0));
    for_blocks(call_, *places_, *this);
    if (!backward_) return;
    T* d_x = static_cast<T*>(call_.d_h) + first * call_.width;
    for (int64_t row = 0; row < rows; ++row)
      std::memcpy(d_x + row * call_.width, kept_ + row * columns_, call_.width * sizeof(T));
  }

  template <int ROWS> void block(int64_t expert, const Place* at) {
    const int64_t start = call_.starts[expert], depth = call_.starts[expert + 1] - start;
    const T* sigma = static_cast<const T*>(call_.weights) + start;
    if (backward_) {
      for (int r = 0; r < ROWS; ++r) {
        const T* grad = static_cast<const T*>(call_.grad) + code_of(at[r], start);
        const bool done = chosen_before(expert, at[r]);
        for (int64_t p = 0; p < depth; ++p) few_[p * ROWS + r] = done ? T(0) : grad[p] * sigma[p];
      }
      products<T, ROWS>(few_, depth, A_, start, [&](int r, int64_t column, Vector<T> low, Vector<T> high) {
        T* to = kept_ + at[r].row * columns_ + column;
        store<T>(to, load(to) + low);
        store<T>(to + n, load(to + n) + high);
      });
      return;
    }
    for (int r = 0; r < ROWS; ++r)
      std::memcpy(kept_ + r * columns_, static_cast<const T*>(call_.h) + (first_ + at[r].row) * call_.width,
                  call_.width * sizeof(T));
    dots<T, ROWS>(kept_, columns_, A_, start, depth, few_);
    for (int r = 0; r < ROWS; ++r) {
      T* code = static_cast<T*>(call_.code) + code_of(at[r], start);
      for (int64_t p = 0; p < depth; ++p) code[p] = few_[r * depth + p] * sigma[p];
    }
  }

 private:
  static constexpr int n = Lanes<T>::count;

  int64_t code_of(const Place& place, int64_t start) const { return (first_ + place.row) * call_.codes + start; }

  // Whether an earlier slot of the token holds the same expert: its codes are there once.
  bool chosen_before(int64_t expert, const Place& place) const {
    if (call_.indices == nullptr) return false;
    const int64_t* chosen = call_.indices + (first_ + place.row) * call_.slots;
    return std::find(chosen, chosen + place.slot, expert) != chosen + place.slot;
  }

  const Call& call_;
  const PaddedB<T>& A_;
  const int64_t columns_;
  const bool backward_;
  Places* places_;
  int64_t first_ = 0;
  T *kept_, *few_;
};

// Forward where call.grad is null.
template <typename T> void shrink(const Call& call) {
  PaddedB<T> A(call);
  const int64_t columns = A.tiles * TILE<T>;
  // Forward nothing is kept for a token, so longer chunks serve: more tokens of an expert share its A.
  const int64_t chunk = call.grad == nullptr ? SHRINK_ROWS : chunk_rows(columns);
  for_spans(call, chunk, [&](int64_t, int64_t first, int64_t end) {
    ShrinkWork<T> work(call, A, columns, chunk);
    for (; first < end; first += chunk) work.chunk(first, std::min(chunk, end - first));
  });
}

}  // namespace radargate
