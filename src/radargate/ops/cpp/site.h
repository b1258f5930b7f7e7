// A whole site for few tokens: codes, stretch, top-k, rotation codes and the mix, added to the base's output. The work is
// bound by reading A and B once, so rows of A and columns of B are what threads share; every sum is one thread's own.
#pragma once

#include "codes.h"
#include "mix.h"

namespace radargate {

// The same fields in the same order stand in sites.py. Arrays are contiguous; theta is null where all weigh
// alike, prior [tokens, experts] where no router has a say, down and up where nothing turns.
struct Site {
  int64_t tokens, experts, slots, inputs, width, codes, rank, wide, threads;
  int64_t unit, selected, bound, renormalize;
  double others, temperature;
  const int64_t* starts;  // [experts + 1]
  const void *x, *A, *B, *scale, *theta, *prior, *down, *up, *onto;
  void* update;
};

constexpr int64_t WORTH_A_THREAD = 1 << 16;  // elements read, below which waking a thread costs more than it saves

template <typename T> class SiteWork {
 public:
  explicit SiteWork(const Site& site)
      : site_(site), every_(site.slots == site.experts), h_(site.tokens * site.codes), weights_(site.tokens * site.slots),
        indices_(every_ ? 0 : site.tokens * site.slots), logits_(site.tokens * site.experts),
        columns_(padded(site.inputs, TILE<T>)), x_(whole_blocks(site.tokens) * columns_) {}

  void run() {
    T* update = static_cast<T*>(site_.update);
    read_inputs();
    const bool turns = site_.up != nullptr, selected = site_.selected && !every_, everyone = every_ || (turns && !selected);
    find_logits_and_codes(everyone);
    for (int64_t token = 0; token < site_.tokens; ++token) choose(token);
    Call call{};
    call.tokens = site_.tokens, call.experts = site_.experts, call.slots = site_.slots, call.width = site_.width;
    call.codes = site_.codes, call.rank = site_.rank, call.wide = site_.wide, call.threads = site_.threads;
    call.unit = site_.unit, call.selected = selected, call.bound = site_.bound;
    call.others = site_.others, call.starts = site_.starts, call.indices = every_ ? nullptr : indices_.data();
    call.h = h_.data(), call.B = site_.B, call.down = site_.down, call.up = site_.up;
    if (!everyone) find_chosen_codes();
    scale_codes();
    if (!turns) {
      weigh_codes();
      std::fill(update, update + site_.tokens * site_.width, T(0));
      times_B(everyone, update);
      const T* onto = static_cast<const T*>(site_.onto);
      for (int64_t i = 0; i < site_.tokens * site_.width; ++i) update[i] += onto[i];
    } else {
      std::vector<T> total(call.selected ? 0 : site_.tokens * site_.width);
      std::vector<T> rotation(site_.tokens * site_.slots * site_.rank);
      if (!call.selected) times_B(true, total.data()), call.total = total.data();
      call.code = rotation.data();
      rotation_codes<T>(call);
      call.weights = weights_.data(), call.rotation = rotation.data(), call.onto = site_.onto, call.update = update;
      mix<T>(call);
    }
  }

 private:
  typedef Vector<T> V;
  static constexpr int n = Lanes<T>::count;

  // Calls body(first, end) for parts of `count` things that read `elements` together.
  template <typename Body> void share(int64_t count, int64_t elements, Body body) {
    const int64_t parts = std::max<int64_t>(1, std::min({site_.threads, elements / WORTH_A_THREAD, count}));
#if defined(_OPENMP)
    if (parts > 1) {
#pragma omp parallel for schedule(static, 1) num_threads(int(parts))
      for (int64_t part = 0; part < parts; ++part) body(count * part / parts, count * (part + 1) / parts);
      return;
    }
#endif
    body(int64_t(0), count);
  }

  void read_inputs() {
    for (int64_t t = 0; t < site_.tokens; ++t)
      std::memcpy(&x_[t * columns_], static_cast<const T*>(site_.x) + t * site_.inputs, site_.inputs * sizeof(T));
  }

  // out[token, row] for rows `first` to `end` of a matrix, in groups that are read once for all tokens.
  void rows_times(const Matrix<T>& matrix, int64_t first, int64_t end, T* out, int64_t stride) const {
    constexpr int64_t GROUP = 8;
    T found[BLOCK * GROUP];
    for (int64_t row = first; row < end; row += GROUP) {
      const int64_t count = std::min(GROUP, end - row);
      for (int64_t t = 0; t < site_.tokens; t += BLOCK) {
        const int64_t tokens = std::min<int64_t>(BLOCK, site_.tokens - t);
        const T* from = &x_[t * columns_];
        if (tokens == 1) dots<T, 1>(from, columns_, matrix, row, count, found);
        else if (tokens == 2) dots<T, 2>(from, columns_, matrix, row, count, found);
        else dots<T, BLOCK>(from, columns_, matrix, row, count, found);
        for (int64_t i = 0; i < tokens; ++i) std::memcpy(out + (t + i) * stride + row, found + i * count, count * sizeof(T));
      }
    }
  }

  // Logits, and in the same stroke the codes of all experts where they are wanted.
  void find_logits_and_codes(bool everyone) {
    const int64_t logits = site_.theta == nullptr ? 0 : site_.experts, codes = everyone ? site_.codes : 0;
    const PaddedColumns<T> theta(site_.theta, logits, site_.inputs), A(site_.A, codes, site_.inputs);
    share(logits + codes, (logits + codes) * site_.inputs, [&](int64_t first, int64_t end) {
      if (first < codes) rows_times(A, first, std::min(end, codes), h_.data(), site_.codes);
      if (end > codes) rows_times(theta, std::max(first, codes) - codes, end - codes, logits_.data(), site_.experts);
    });
  }

  // Codes of the experts that some token chose.
  void find_chosen_codes() {
    const PaddedColumns<T> A(site_.A, site_.codes, site_.inputs);
    std::vector<int64_t> chosen(indices_);
    std::sort(chosen.begin(), chosen.end());
    chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
    for (int64_t e : chosen) rows_times(A, site_.starts[e], site_.starts[e + 1], h_.data(), site_.codes);
  }

  void scale_codes() {
    const T* scale = static_cast<const T*>(site_.scale);
    for (int64_t t = 0; t < site_.tokens; ++t)
      for (int64_t p = 0; p < site_.codes; ++p) h_[t * site_.codes + p] *= scale[p];
  }

  // out += h B over the rows of all experts, or of those a token chose.
  void times_B(bool everyone, T* out) {
    const PaddedColumns<T> B(site_.B, site_.codes, site_.width);
    std::vector<T> turned(everyone ? padded(site_.tokens, BLOCK) * site_.codes : 0);
    for (int64_t t = 0; everyone && t < site_.tokens; ++t) {
      const int64_t block = t / BLOCK * BLOCK, rows = block_rows(site_.tokens - block);
      for (int64_t p = 0; p < site_.codes; ++p) turned[block * site_.codes + p * rows + t - block] = h_[t * site_.codes + p];
    }
    share(B.tiles, site_.codes * site_.width, [&](int64_t first, int64_t end) {
      const Matrix<T> part = B.part(first, end);
      T* to = out + first * TILE<T>;
      const int64_t width = site_.width - first * TILE<T>;
      for (int64_t t = 0; t < site_.tokens; t += everyone ? BLOCK : 1) {
        if (!everyone) {
          for (int64_t s = 0; s < site_.slots; ++s) {
            const int64_t e = indices_[t * site_.slots + s], start = site_.starts[e];
            add_rows<1>(&h_[t * site_.codes + start], start, site_.starts[e + 1] - start, part, width, t, to);
          }
          continue;
        }
        const T* coefficients = &turned[t * site_.codes];
        const int64_t rows = block_rows(site_.tokens - t);
        if (rows == 1) add_rows<1>(coefficients, 0, site_.codes, part, width, t, to);
        else if (rows == 2) add_rows<2>(coefficients, 0, site_.codes, part, width, t, to);
        else add_rows<BLOCK>(coefficients, 0, site_.codes, part, width, t, to);
      }
    });
  }
  static int64_t block_rows(int64_t tokens) { return tokens <= 2 ? tokens : BLOCK; }
  static int64_t whole_blocks(int64_t tokens) { return tokens / BLOCK * BLOCK + block_rows(tokens % BLOCK); }

  template <int ROWS>
  void add_rows(const T* coefficients, int64_t start, int64_t depth, const Matrix<T>& part, int64_t width, int64_t token,
                T* to) const {
    products<T, ROWS>(coefficients, depth, part, start, [&](int r, int64_t column, V low, V high) {
      if (token + r >= site_.tokens) return;
      T tile[TILE<T>] = {};
      T* into = to + (token + r) * site_.width + column;
      const size_t bytes = std::min(TILE<T>, width - column) * sizeof(T);
      std::memcpy(tile, into, bytes);
      store<T>(tile, load(tile) + low);
      store<T>(tile + n, load(tile + n) + high);
      std::memcpy(into, tile, bytes);
    });
  }

  // What is not a number counts as the greatest, as PyTorch sorts.
  static bool greater(T a, T b) { return a > b || (a != a && b == b); }

  // Top-k, highest first and ties to the lowest index, and the softmax.
  void choose(int64_t token) {
    T* logits = &logits_[token * site_.experts];
    T* weights = &weights_[token * site_.slots];
    const T* prior = static_cast<const T*>(site_.prior);
    for (int64_t e = 0; e < site_.experts; ++e) {
      logits[e] /= T(site_.temperature);
      if (prior != nullptr) logits[e] += prior[token * site_.experts + e];
    }
    if (every_) {
      std::copy(logits, logits + site_.experts, weights);
      softmax(weights, site_.slots, weights, site_.slots);
      return;
    }
    int64_t* indices = &indices_[token * site_.slots];
    for (int64_t s = 0; s < site_.slots; ++s) {
      int64_t best = -1;
      for (int64_t e = 0; e < site_.experts; ++e)
        if (std::find(indices, indices + s, e) == indices + s && (best < 0 || greater(logits[e], logits[best]))) best = e;
      indices[s] = best;
      weights[s] = logits[best];
    }
    if (site_.renormalize)
      softmax(weights, site_.slots, weights, site_.slots);
    else
      softmax(weights, site_.slots, logits, site_.experts);
  }

  // values ← softmax, over `count` logits of which the values are some.
  static void softmax(T* values, int64_t size, const T* logits, int64_t count) {
    T most = logits[0], sum = 0;
    for (int64_t i = 1; i < count; ++i) most = greater(logits[i], most) ? logits[i] : most;
    for (int64_t i = 0; i < count; ++i) sum += std::exp(logits[i] - most);
    for (int64_t i = 0; i < size; ++i) values[i] = std::exp(values[i] - most) / sum;
  }

  void weigh_codes() {
    std::vector<T> factors(site_.experts);
    for (int64_t t = 0; t < site_.tokens; ++t) {
      std::fill(factors.begin(), factors.end(), T(0));
      for (int64_t s = 0; s < site_.slots; ++s)
        factors[every_ ? s : indices_[t * site_.slots + s]] = weights_[t * site_.slots + s];
      for (int64_t e = 0; e < site_.experts; ++e)
        for (int64_t p = site_.starts[e]; p < site_.starts[e + 1]; ++p) h_[t * site_.codes + p] *= factors[e];
    }
  }

  const Site& site_;
  const bool every_;  // no slot is left out: experts stay in order
  std::vector<T> h_, weights_;
  std::vector<int64_t> indices_;
  std::vector<T> logits_;
  const int64_t columns_;
  std::vector<T> x_;  // rows beyond the tokens are zero, so that blocks are whole
};

}  // namespace radargate
