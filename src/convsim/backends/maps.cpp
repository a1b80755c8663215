// Feature maps at sampled positions on a CPU: read, penalised and given their gradient.
//
// Of S samples (S, M) of M maps, x_i a map less its mean and over √(its variance + ε):
//
//   value = Σ_{i≠j} ⟨x_i, x_j⟩² / (S²·M(M−1)),   ∂value/∂x = 4 (x xᵀx, without i = j) / (S²·M(M−1)).
//
// ‖xᵀx‖ = ‖x xᵀ‖, and (x xᵀ) x = x (xᵀ x): the smaller product is made, of a matrix whose rows are
// the longer of samples and maps. See correlation.py, which this computes.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "lanes.h"

namespace {

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 8, TILE_VECTORS = 2; // as many sums as there are registers for
#else
constexpr int TILE_ROWS = 4, TILE_VECTORS = 1;
#endif
constexpr int64_t TILE_COLUMNS = TILE_VECTORS * LANES;
constexpr int64_t AHEAD = 12;                     // rows fetched before they are read
constexpr int64_t PRODUCTS_OF_A_THREAD = 1 << 22; // fewer are sooner done than a thread is woken
constexpr double VARIANCE = 1e-5;                 // ε
constexpr double PEAK = 1e12;                     // the largest value taken as it is

struct BFloat16 {
  uint16_t bits;
};
inline float number(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
inline float number(float x) { return x; }
inline double number(double x) { return x; }
inline void store(float x, BFloat16 &to) { // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  to.bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void store(float x, float &to) { to = x; }
inline void store(double x, double &to) { to = x; }

} // namespace

extern "C" {

struct Places { // positions of maps (N, M, …) in memory
  const int64_t *offsets;       // of the first map at each position, in elements
  int64_t samples, count, step; // maps, and from one to the next, in elements
};

struct Sampled {
  const void *samples; // (S, M), contiguous
  void *gradient;      // (S, M) of weight · value, written
  int64_t count, maps;
  double weight;
  double value; // out
};
}

namespace {

template <class T> void fetch(const Places &places, const T *maps, int64_t s, int for_writing) {
  if (places.step != 1 || s >= places.samples) return;
  const char *row = reinterpret_cast<const char *>(maps + places.offsets[s]);
  for (int64_t byte = 0; byte < int64_t(sizeof(T)) * places.count; byte += 64)
    for_writing ? __builtin_prefetch(row + byte, 1) : __builtin_prefetch(row + byte, 0);
}

template <class T, class Number>
void read(const Places &places, const T *maps, Number *samples) {
  for (int64_t s = 0; s < AHEAD; ++s) fetch(places, maps, s, 0);
  for (int64_t s = 0; s < places.samples; ++s, samples += places.count) {
    fetch(places, maps, s + AHEAD, 0);
    const T *row = maps + places.offsets[s];
    if (places.step == 1)
      for (int64_t m = 0; m < places.count; ++m) samples[m] = number(row[m]);
    else
      for (int64_t m = 0; m < places.count; ++m) samples[m] = number(row[m * places.step]);
  }
}

template <class T, class Number> void add(const Places &places, T *maps, const Number *own) {
  for (int64_t s = 0; s < AHEAD; ++s) fetch(places, maps, s, 1);
  for (int64_t s = 0; s < places.samples; ++s, own += places.count) {
    fetch(places, maps, s + AHEAD, 1);
    T *row = maps + places.offsets[s];
    if (places.step == 1)
      for (int64_t m = 0; m < places.count; ++m) store(number(row[m]) + own[m], row[m]);
    else
      for (int64_t m = 0; m < places.count; ++m)
        store(number(row[m * places.step]) + own[m], row[m * places.step]);
  }
}

// out[r, c] = Σ_k a[r·along + k·across] b[k, c], a tile of it; rows of b and out are `width` apart.
template <class T, int ROWS>
void tile(const T *a, int64_t along, int64_t across, const T *b, int64_t inner, int64_t width,
          T *out) {
  Vector<T> sum[ROWS][TILE_VECTORS] = {};
  for (int64_t k = 0; k < inner; ++k) {
    Vector<T> row[TILE_VECTORS];
    for (int v = 0; v < TILE_VECTORS; ++v) row[v] = at(b + k * width + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < TILE_VECTORS; ++v) sum[r][v] += a[r * along + k * across] * row[v];
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < TILE_VECTORS; ++v) at(out + r * width + v * LANES) = sum[r][v];
}

template <class T>
using Tile = void (*)(const T *, int64_t, int64_t, const T *, int64_t, int64_t, T *);
template <class T>
constexpr Tile<T> TILES[] = {tile<T, 1>, tile<T, 2>, tile<T, 3>, tile<T, 4>,
                             tile<T, 5>, tile<T, 6>, tile<T, 7>, tile<T, 8>};

// All columns of `rows` rows of that product, from column `first` on.
template <class T>
void multiply(int64_t rows, int64_t first, int64_t columns, const T *a, int64_t along,
              int64_t across, const T *b, int64_t inner, int64_t width, T *out) {
  for (int64_t c = first / TILE_COLUMNS * TILE_COLUMNS; c < columns; c += TILE_COLUMNS)
    TILES<T>[rows - 1](a, along, across, b + c, inner, width, out + c);
}

// Call with each place of samples (S, M), maps next to each other, and its map; no call depends on
// another of the same sample.
template <class Call> void each(int64_t samples, int64_t maps, const Call &call) {
  for (int64_t first = 0; first < samples * maps; first += maps)
#pragma GCC ivdep
    for (int64_t m = 0; m < maps; ++m) call(first + m, m);
}

// out[c, r] = in[r, c], so many rows and columns, whose rows are so far apart.
template <class T>
void transpose(const T *in, int64_t apart, int64_t rows, int64_t columns, T *out, int64_t width) {
  for (int64_t first = 0; first < columns; first += LANES)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = first; c < std::min(columns, first + LANES); ++c)
        out[c * width + r] = in[r * apart + c];
}

template <class T>
void copy(const T *in, int64_t apart, int64_t rows, int64_t columns, T *out, int64_t width) {
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(out + r * width, in + r * apart, sizeof(T) * columns);
}

// Write factor · the gradient of Σ_{i≠j} ⟨x_i, x_j⟩² and return the sum.
template <class T>
double correlation(const T *x, int64_t samples, int64_t maps, double factor, T *gradient) {
  // x less its mean and over its deviation
  std::vector<T> peak(maps), standard(samples * maps);
  std::vector<double> scale(maps), mean(maps), square(maps), inverse(maps);
  each(samples, maps, [&](int64_t place, int64_t m) {
    const T size = std::abs(x[place]);
    peak[m] = peak[m] < size ? size : peak[m];
  });
  for (int64_t m = 0; m < maps; ++m) scale[m] = peak[m] > PEAK ? PEAK / peak[m] : 1;
  each(samples, maps, [&](int64_t place, int64_t m) { mean[m] += x[place] * scale[m]; });
  for (double &own : mean) own /= samples;
  each(samples, maps, [&](int64_t place, int64_t m) {
    const double centered = x[place] * scale[m] - mean[m];
    square[m] += centered * centered;
  });
  for (int64_t m = 0; m < maps; ++m) {
    inverse[m] = 1 / std::sqrt(square[m] / samples + VARIANCE);
    square[m] *= inverse[m] * inverse[m];
  }
  each(samples, maps, [&](int64_t place, int64_t m) {
    standard[place] = T((x[place] * scale[m] - mean[m]) * inverse[m]);
  });

  // the matrix whose rows are the longer side, its products with itself and with those
  const bool wide = maps > samples;
  const int64_t rows = std::max(samples, maps), columns = std::min(samples, maps);
  // Rows a power of two apart would meet in the same lines of the cache.
  const int64_t width = filled_up(columns, TILE_COLUMNS) + LANES;
  std::vector<T> matrix(rows * width), gram(columns * width), product(rows * width);
  (wide ? transpose<T> : copy<T>)(standard.data(), maps, samples, maps, matrix.data(), width);
  for (int64_t i = 0; i < columns; i += TILE_ROWS)
    multiply(std::min<int64_t>(TILE_ROWS, columns - i), i, columns, &matrix[i], 1, width,
             matrix.data(), rows, width, &gram[i * width]);
  double total = 0;
  for (int64_t i = 0; i < columns; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      const T own = gram[i * width + j] = gram[j * width + i];
      total += 2 * double(own) * own;
    }
    T &own = gram[i * width + i];
    if (wide) total += double(own) * own; // else a map with itself
    else own = 0;
  }
  for (int64_t r = 0; r < rows; r += TILE_ROWS)
    multiply(std::min<int64_t>(TILE_ROWS, rows - r), 0, columns, &matrix[r * width], width, 1,
             gram.data(), columns, width, &product[r * width]);
  (wide ? transpose<T> : copy<T>)(product.data(), width, rows, columns, gradient, maps);
  if (wide) {
    for (double own : square) total -= own * own;
    each(samples, maps, [&](int64_t place, int64_t m) {
      gradient[place] -= T(square[m]) * standard[place];
    });
  }

  // back through the deviation and the mean
  std::vector<double> along(maps);
  std::fill(mean.begin(), mean.end(), 0.0);
  each(samples, maps, [&](int64_t place, int64_t m) {
    mean[m] += gradient[place];
    along[m] += double(gradient[place]) * standard[place];
  });
  for (int64_t m = 0; m < maps; ++m) {
    mean[m] /= samples;
    along[m] /= samples;
    scale[m] *= 4 * factor * inverse[m];
  }
  each(samples, maps, [&](int64_t place, int64_t m) {
    gradient[place] = T((gradient[place] - mean[m] - standard[place] * along[m]) * scale[m]);
  });
  return total;
}

// Tell whether memory was too little.
template <class T> int penalise(Sampled *layers, int64_t count, int threads) {
  double products = 0;
  int failed = 0;
  for (int64_t i = 0; i < count; ++i)
    products += double(layers[i].count) * layers[i].maps * std::min(layers[i].count, layers[i].maps);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (products > PRODUCTS_OF_A_THREAD)
  for (int64_t i = 0; i < count; ++i) {
    Sampled &layer = layers[i];
    const double samples = layer.count, pairs = std::max<int64_t>(1, layer.maps * (layer.maps - 1));
    const double by = 1 / (samples * samples * pairs);
    try {
      layer.value = by * correlation(static_cast<const T *>(layer.samples), layer.count, layer.maps,
                                     layer.weight * by, static_cast<T *>(layer.gradient));
    } catch (const std::bad_alloc &) {
#pragma omp atomic write
      failed = 1;
    }
  }
  return failed;
}

} // namespace

extern "C" {

void read_bfloat16(const Places *places, const BFloat16 *maps, float *samples) {
  read(*places, maps, samples);
}
void read_float32(const Places *places, const float *maps, float *samples) {
  read(*places, maps, samples);
}
void read_float64(const Places *places, const double *maps, double *samples) {
  read(*places, maps, samples);
}
void add_bfloat16(const Places *places, BFloat16 *maps, const float *own) {
  add(*places, maps, own);
}
void add_float32(const Places *places, float *maps, const float *own) { add(*places, maps, own); }
void add_float64(const Places *places, double *maps, const double *own) {
  add(*places, maps, own);
}

int correlation_float32(Sampled *layers, int64_t count, int threads) {
  return penalise<float>(layers, count, threads);
}
int correlation_float64(Sampled *layers, int64_t count, int threads) {
  return penalise<double>(layers, count, threads);
}
}
