// What a call is given, and how its tokens are divided: spans of chunks of blocks. The division depends on sizes alone
// and sums over tokens are taken span by span, so results are the same bits for any number of threads.
#pragma once

#include <atomic>

#include "vectors.h"

namespace radargate {

// The same fields in the same order stand in calls.py. Arrays are contiguous; absent ones are null.
struct Call {
  int64_t tokens, experts, slots, width, codes, rank, wide, threads;
  int64_t unit, selected, bound;
  double others;
  const int64_t* starts;   // [experts + 1]: where each expert's codes begin
  const int64_t* indices;  // [tokens, slots]
  const void *h, *B, *total, *rounding, *down, *up, *weights, *rotation, *grad, *onto;  // onto [tokens, width]: what the update is added to
  void *code, *scales, *update;  // results of the forward pass; scales [tokens, slots, 3]: 1/rms of v and reference, alone
  void *d_h, *d_B, *d_total, *d_down, *d_weights, *d_rotation, *d_up;
};

enum Outcome { DONE = 0, BAD_INDEX = 1, NO_MEMORY = 2 };

struct Place {
  int64_t row, slot;
};

constexpr int64_t MOST_SPANS = 16, MOST_ROWS = 64, CHUNK_ELEMENTS = 1 << 16;

inline int64_t padded(int64_t columns, int64_t tile) { return (columns + tile - 1) / tile * tile; }

// Rows of a chunk: what is kept for each of them over all slots stays in the second-level cache.
inline int64_t chunk_rows(int64_t columns) {
  return std::max<int64_t>(8, std::min<int64_t>(MOST_ROWS, CHUNK_ELEMENTS / std::max<int64_t>(columns, 1) / 8 * 8));
}

inline bool indices_fit(const Call& call) {
  if (call.indices == nullptr) return true;
  for (int64_t i = 0; i < call.tokens * call.slots; ++i)
    if (call.indices[i] < 0 || call.indices[i] >= call.experts) return false;
  return true;
}

// The (row, slot) places of a chunk, expert after expert.
struct Places {
  std::vector<Place> list;
  std::vector<int64_t> begin;

  void find(const Call& call, int64_t first, int64_t rows) {
    list.resize(rows * call.slots);
    begin.assign(call.experts + 1, 0);
    auto expert = [&](int64_t row, int64_t slot) {
      return call.indices == nullptr ? slot : call.indices[(first + row) * call.slots + slot];
    };
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t slot = 0; slot < call.slots; ++slot) ++begin[expert(row, slot) + 1];
    for (int64_t e = 0; e < call.experts; ++e) begin[e + 1] += begin[e];
    next_.assign(begin.begin(), begin.end());
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t slot = 0; slot < call.slots; ++slot) list[next_[expert(row, slot)]++] = {row, slot};
  }

 private:
  std::vector<int64_t> next_;
};

// Calls work.block<ROWS>(expert, places) for the places of every expert in blocks as large as they come.
template <typename Work> inline void for_blocks(const Call& call, const Places& places, Work& work) {
  for (int64_t e = 0; e < call.experts; ++e) {
    const Place* at = places.list.data() + places.begin[e];
    int64_t left = places.begin[e + 1] - places.begin[e];
    for (; left >= BLOCK; left -= BLOCK, at += BLOCK) work.template block<BLOCK>(e, at);
    if (BLOCK > 4 && left >= 4) work.template block<4>(e, at), left -= 4, at += 4;
    if (left >= 2) work.template block<2>(e, at), left -= 2, at += 2;
    if (left) work.template block<1>(e, at);
  }
}

inline int64_t span_count(const Call& call, int64_t chunk) {
  return std::min<int64_t>(MOST_SPANS, (call.tokens + chunk - 1) / chunk);
}

// Runs body(span, first token, end) for every span, on up to call.threads threads.
template <typename Body> inline void for_spans(const Call& call, int64_t chunk, Body body) {
  const int64_t chunks = (call.tokens + chunk - 1) / chunk, spans = span_count(call, chunk);
  std::atomic<bool> failed{false};
  auto run = [&](int64_t span) {
    try {
      body(span, chunks * span / spans * chunk, std::min(call.tokens, chunks * (span + 1) / spans * chunk));
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  };
#if defined(_OPENMP)
  if (call.threads > 1 && spans > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(int(std::min(call.threads, spans)))
    for (int64_t span = 0; span < spans; ++span) run(span);
    if (failed) throw std::bad_alloc();
    return;
  }
#endif
  for (int64_t span = 0; span < spans; ++span) run(span);
  if (failed) throw std::bad_alloc();
}

// A matrix as it is given, with its last, partial tile of columns padded.
template <typename T> struct PaddedColumns : Matrix<T> {
  PaddedColumns(const void* given, int64_t rows, int64_t width) {
    const T* from = static_cast<const T*>(given);
    const int64_t whole = width / TILE<T>, rest = width % TILE<T>;
    if (rest) {
      copy_.assign(rows * TILE<T>, T(0));
      for (int64_t p = 0; p < rows; ++p)
        std::memcpy(&copy_[p * TILE<T>], from + p * width + whole * TILE<T>, rest * sizeof(T));
    }
    static_cast<Matrix<T>&>(*this) = {from, width, copy_.data(), whole, whole + (rest ? 1 : 0)};
  }

 private:
  std::vector<T> copy_;
};

template <typename T> struct PaddedB : PaddedColumns<T> {
  PaddedB(const Call& call) : PaddedColumns<T>(call.B, call.codes, call.width) {}
};

// A small matrix, held whole with its rows padded.
template <typename T> struct PaddedRows : Matrix<T> {
  PaddedRows(int64_t rows, int64_t columns) : columns(padded(columns, TILE<T>)), rows_(rows) {
    copy_.assign(rows * this->columns, T(0));
    static_cast<Matrix<T>&>(*this) = {copy_.data(), this->columns, nullptr, this->columns / TILE<T>,
                                      this->columns / TILE<T>};
  }
  T* row(int64_t i) { return copy_.data() + i * columns; }
  const int64_t columns;

 private:
  std::vector<T> copy_;
  int64_t rows_;
};

// into [RANK, width] = the transpose of given [width, RANK], RANK a power of two: separating even from odd places halves
// the columns that share a vector, and log₂ RANK times leaves one.
template <typename T, int RANK> inline int64_t transpose_vectors(const T* given, int64_t width, PaddedRows<T>& into) {
  constexpr int n = Lanes<T>::count;
  int64_t i = 0;
  for (; i + n <= width; i += n) {
    Vector<T> now[RANK], next[RANK];
#pragma GCC unroll 16
    for (int v = 0; v < RANK; ++v) now[v] = load(given + i * RANK + v * n);
#pragma GCC unroll 4
    for (int done = 1; done < RANK; done *= 2) {
#pragma GCC unroll 8
      for (int v = 0; v < RANK / 2; ++v) {
        next[v] = evens<T>(now[2 * v], now[2 * v + 1]);
        next[v + RANK / 2] = odds<T>(now[2 * v], now[2 * v + 1]);
      }
      std::copy(next, next + RANK, now);
    }
#pragma GCC unroll 16
    for (int v = 0; v < RANK; ++v) store<T>(into.row(v) + i, now[v]);
  }
  return i;
}

template <typename T> inline void transpose(const T* given, int64_t width, int64_t rank, PaddedRows<T>& into) {
  int64_t i = 0;
  if (rank == 4) i = transpose_vectors<T, 4>(given, width, into);
  if (rank == 8) i = transpose_vectors<T, 8>(given, width, into);
  if (rank == 16) i = transpose_vectors<T, 16>(given, width, into);
  for (; i < width; ++i)
    for (int64_t c = 0; c < rank; ++c) into.row(c)[i] = given[i * rank + c];
}

// A gradient [rows, columns] that is a sum over tokens: one buffer a span, so that their sum does not depend on who
// filled them. Nothing is held for a gradient that nobody asked for (to == null).
template <typename T> class SpanSums {
 public:
  SpanSums(const void* to, int64_t spans, int64_t rows, int64_t columns)
      : rows_(rows), columns_(columns), sums_(to == nullptr ? 0 : spans * rows * columns, T(0)) {}
  T* of(int64_t span) { return sums_.empty() ? nullptr : sums_.data() + span * rows_ * columns_; }
  template <typename Put> void total(Put put) {  // put(row, sum of the row)
    if (sums_.empty()) return;
    const int64_t size = rows_ * columns_;
    for (int64_t at = size; at < int64_t(sums_.size()); at += size)
      for (int64_t i = 0; i < size; ++i) sums_[i] += sums_[at + i];
    for (int64_t row = 0; row < rows_; ++row) put(row, sums_.data() + row * columns_);
  }

 private:
  const int64_t rows_, columns_;
  std::vector<T> sums_;
};

}  // namespace radargate
