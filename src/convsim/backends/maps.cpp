// Feature maps at sampled positions on a CPU: read, penalised and given their gradient.
//
// Of S samples (S, M) of M maps, x_i a map less its mean and over √(its variance + ε):
//
//   value = Σ_{i≠j} ⟨x_i, x_j⟩² / (S²·M(M−1)),   ∂value/∂x = 4 (x xᵀx, without i = j) / (S²·M(M−1)).
//
// ‖xᵀx‖ = ‖x xᵀ‖, and (x xᵀ) x = x (xᵀ x): the smaller product is made. See correlation.py, which
// this computes.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "lanes.h"

namespace {

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 8, TILE_VECTORS = 2, DOTS = 4; // as many sums as there are registers for
#else
constexpr int TILE_ROWS = 4, TILE_VECTORS = 1, DOTS = 2;
#endif
constexpr int64_t TILE_COLUMNS = TILE_VECTORS * LANES;
constexpr int64_t MANY_ROWS = 128;                // of a product: the other matrix is laid out anew
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

// out[r, c] = Σ_k a[r·along + k·across] b[k, c], a tile of it; rows of b are `apart` apart.
template <class T, int ROWS>
void tile(const T *a, int64_t along, int64_t across, const T *b, int64_t apart, int64_t inner,
          T *out, int64_t width) {
  Vector<T> sum[ROWS][TILE_VECTORS] = {};
  for (int64_t k = 0; k < inner; ++k) {
    Vector<T> row[TILE_VECTORS];
    for (int v = 0; v < TILE_VECTORS; ++v) row[v] = at(b + k * apart + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < TILE_VECTORS; ++v) sum[r][v] += a[r * along + k * across] * row[v];
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < TILE_VECTORS; ++v) at(out + r * width + v * LANES) = sum[r][v];
}

template <class T>
using Tile = void (*)(const T *, int64_t, int64_t, const T *, int64_t, int64_t, T *, int64_t);
template <class T>
constexpr Tile<T> TILES[] = {tile<T, 1>, tile<T, 2>, tile<T, 3>, tile<T, 4>,
                             tile<T, 5>, tile<T, 6>, tile<T, 7>, tile<T, 8>};

// Memory that one layer after the other uses.
template <class T> struct Scratch {
  std::vector<T> standard, gram, product, panel;
};
template <class T> T *room(std::vector<T> &memory, int64_t count) {
  if (int64_t(memory.size()) < count) memory.resize(count);
  return memory.data();
}

// That product, so many rows and columns; of a symmetric one what is above the diagonal.
template <class T>
void multiply(int64_t rows, int64_t columns, bool symmetric, const T *a, int64_t along,
              int64_t across, const T *b, int64_t apart, int64_t inner, T *out, int64_t width,
              std::vector<T> &memory) {
  T *panel = rows > MANY_ROWS ? room(memory, inner * TILE_COLUMNS) : nullptr;
  for (int64_t c = 0; c < columns; c += TILE_COLUMNS) {
    if (panel)
      for (int64_t k = 0; k < inner; ++k)
        std::memcpy(panel + k * TILE_COLUMNS, b + k * apart + c, sizeof(T) * TILE_COLUMNS);
    for (int64_t r = 0; r < (symmetric ? std::min(rows, c + TILE_COLUMNS) : rows); r += TILE_ROWS)
      TILES<T>[std::min<int64_t>(TILE_ROWS, rows - r) - 1](
          a + r * along, along, across, panel ? panel : b + c, panel ? TILE_COLUMNS : apart, inner,
          out + r * width + c, width);
  }
}

// out[i, j] = ⟨row i, row j⟩, i < DOTS and j < DOTS, of rows so far apart.
template <class T>
void dots(const T *a, const T *b, int64_t inner, int64_t apart, T *out, int64_t width) {
  Vector<T> sum[DOTS][DOTS] = {};
  for (int64_t k = 0; k < inner; k += LANES)
#pragma GCC unroll 8
    for (int i = 0; i < DOTS; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < DOTS; ++j) sum[i][j] += at(a + i * apart + k) * at(b + j * apart + k);
  for (int i = 0; i < DOTS; ++i)
    for (int j = 0; j < DOTS; ++j) {
      T total = 0;
      for (int lane = 0; lane < LANES; ++lane) total += sum[i][j][lane];
      out[i * width + j] = total;
    }
}

// Call with each place of samples (S, M), that in rows `width` apart, and its map; no call depends
// on another of the same sample.
template <class Call>
void each(int64_t samples, int64_t maps, int64_t width, const Call &call) {
  for (int64_t s = 0; s < samples; ++s)
#pragma GCC ivdep
    for (int64_t m = 0; m < maps; ++m) call(s * maps + m, s * width + m, m);
}

// Write factor · the gradient of Σ_{i≠j} ⟨x_i, x_j⟩² and return the sum.
template <class T>
double correlation(const T *x, int64_t samples, int64_t maps, double factor, T *gradient,
                   Scratch<T> &scratch) {
  const bool wide = maps > samples;
  const int64_t size = std::min(samples, maps);
  // Rows a power of two apart would meet in the same lines of the cache.
  const int64_t width = filled_up(maps, TILE_COLUMNS) + LANES;
  const int64_t apart = filled_up(size, TILE_COLUMNS) + LANES;
  const int64_t rows = filled_up(samples, DOTS);
  T *standard = room(scratch.standard, rows * width);
  T *gram = room(scratch.gram, filled_up(size, DOTS) * apart);
  T *product = room(scratch.product, samples * width);

  // x less its mean and over its deviation
  std::vector<T> peak(maps);
  std::vector<double> scale(maps), mean(maps), square(maps), inverse(maps);
  each(samples, maps, width, [&](int64_t place, int64_t, int64_t m) {
    const T large = std::abs(x[place]);
    peak[m] = peak[m] < large ? large : peak[m];
  });
  for (int64_t m = 0; m < maps; ++m) scale[m] = peak[m] > PEAK ? PEAK / peak[m] : 1;
  each(samples, maps, width,
       [&](int64_t place, int64_t, int64_t m) { mean[m] += x[place] * scale[m]; });
  for (double &own : mean) own /= samples;
  each(samples, maps, width, [&](int64_t place, int64_t, int64_t m) {
    const double centered = x[place] * scale[m] - mean[m];
    square[m] += centered * centered;
  });
  for (int64_t m = 0; m < maps; ++m) {
    inverse[m] = 1 / std::sqrt(square[m] / samples + VARIANCE);
    square[m] *= inverse[m] * inverse[m];
  }
  each(samples, maps, width, [&](int64_t place, int64_t own, int64_t m) {
    standard[own] = T((x[place] * scale[m] - mean[m]) * inverse[m]);
  });
  for (int64_t s = 0; s < samples; ++s)
    std::fill(standard + s * width + maps, standard + (s + 1) * width, T(0));
  std::fill(standard + samples * width, standard + rows * width, T(0));

  // its products with itself, the fewer, and with those
  if (wide)
    for (int64_t i = 0; i < size; i += DOTS)
      for (int64_t j = i; j < size; j += DOTS)
        dots(standard + i * width, standard + j * width, filled_up(maps), width,
             gram + i * apart + j, apart);
  else
    multiply(size, size, true, standard, 1, width, standard, width, samples, gram, apart,
             scratch.panel);
  double total = 0;
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      const T own = gram[i * apart + j] = gram[j * apart + i];
      total += 2 * double(own) * own;
    }
    T &own = gram[i * apart + i];
    if (wide) total += double(own) * own; // else a map with itself
    else own = 0;
  }
  if (!wide) {
    multiply(samples, maps, false, standard, width, 1, gram, apart, maps, product, width,
             scratch.panel);
  } else {
    multiply(samples, maps, false, gram, apart, 1, standard, width, samples, product, width,
             scratch.panel);
    for (double own : square) total -= own * own;
    each(samples, maps, width, [&](int64_t, int64_t own, int64_t m) {
      product[own] -= T(square[m]) * standard[own];
    });
  }

  // back through the deviation and the mean
  std::vector<double> along(maps);
  std::fill(mean.begin(), mean.end(), 0.0);
  each(samples, maps, width, [&](int64_t, int64_t own, int64_t m) {
    mean[m] += product[own];
    along[m] += double(product[own]) * standard[own];
  });
  for (int64_t m = 0; m < maps; ++m) {
    mean[m] /= samples;
    along[m] /= samples;
    scale[m] *= 4 * factor * inverse[m];
  }
  each(samples, maps, width, [&](int64_t place, int64_t own, int64_t m) {
    gradient[place] = T((product[own] - mean[m] - standard[own] * along[m]) * scale[m]);
  });
  return total;
}

// Tell whether memory was too little.
template <class T> int penalise(Sampled *layers, int64_t count, int threads) {
  double products = 0;
  int failed = 0;
  for (int64_t i = 0; i < count; ++i)
    products += double(layers[i].count) * layers[i].maps * std::min(layers[i].count, layers[i].maps);
#pragma omp parallel num_threads(threads) if (products > PRODUCTS_OF_A_THREAD)
  {
    Scratch<T> scratch;
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < count; ++i) {
      Sampled &layer = layers[i];
      const double samples = layer.count;
      const double pairs = std::max<int64_t>(1, layer.maps * (layer.maps - 1));
      const double by = 1 / (samples * samples * pairs);
      try {
        layer.value =
            by * correlation(static_cast<const T *>(layer.samples), layer.count, layer.maps,
                             layer.weight * by, static_cast<T *>(layer.gradient), scratch);
      } catch (const std::bad_alloc &) {
#pragma omp atomic write
        failed = 1;
      }
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
