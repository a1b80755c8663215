// Convolutional Similarity and its gradient on a CPU, layer by layer, in two passes over the weights.
//
// A filter is C channels of n taps. Its autocorrelation a pools the products of taps u and v by
// class (see similarity.py): only pairs u <= v are summed, and class h stands for multiplicity[h]
// equal entries of a. N_i sums the autocorrelations of filter i's partners; the gradient is
// 2 W_i T_i with T_i[u, v] = N_i[class of (u, v)].
//
// Products are taken in the filters' own type, sums over more than 128 of them in double.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "lanes.h"

namespace {

constexpr int64_t CHANNELS_OF_A_SUM = 128;    // products summed in the filters' own type
constexpr int64_t CHANNELS_OF_A_TASK = 64;    // matched: channels that one thread walks through
constexpr int64_t ELEMENTS_OF_A_TASK = 32768; // crossed: elements that one thread walks through
constexpr int64_t PRODUCTS_OF_A_THREAD = 1 << 20; // fewer are sooner done than a thread is woken

} // namespace

extern "C" struct Layer {
  void *filters, *gradient;               // by the strides below; gradient is added to
  int64_t groups, members, channels, taps; // members: filters of one group
  int64_t filter_stride[4], gradient_stride[4];
  const int32_t *pair_class;   // (taps, taps), symmetric; classes where a pair is left out
  const double *multiplicity;  // (classes)
  int64_t classes;
  double weight, factor; // value = weight * sum over pairs; the gradient is of factor * value
  double value;          // out
};

namespace {

struct Options {
  bool matched, unit, adjacent;
};

// One filter's elements, in rows of `width` scalars that may be strided in memory.
template <class T> struct View {
  T *data;
  int64_t channels, taps, channel_stride, tap_stride;

  bool contiguous() const {
    return (taps == 1 || tap_stride == 1) && (channels == 1 || channel_stride == taps);
  }
  void read(std::remove_const_t<T> *to) const {
    if (contiguous()) {
      std::memcpy(to, data, sizeof(T) * channels * taps);
      return;
    }
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t u = 0; u < taps; ++u)
        to[c * taps + u] = data[c * channel_stride + u * tap_stride];
  }
  void add(const T *from) const {
    if (contiguous()) {
      for (int64_t x = 0; x < channels * taps; ++x) data[x] += from[x];
      return;
    }
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t u = 0; u < taps; ++u)
        data[c * channel_stride + u * tap_stride] += from[c * taps + u];
  }
};

template <class T>
View<T> view(void *base, const int64_t *stride, const Layer &layer, int64_t filter, int64_t channel,
             int64_t channels) {
  T *data = static_cast<T *>(base) + filter / layer.members * stride[0] +
            filter % layer.members * stride[1] + channel * stride[2];
  return {data, channels, layer.taps, stride[2], stride[3]};
}

// Largest magnitude; NaN if any is, for as integers the magnitudes keep their order, NaN on top.
template <class T> T peak_of(const T *w, int64_t count) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  const Bits magnitude = ~Bits(0) >> 1;
  Bits peak = 0;
  for (int64_t x = 0; x < count; ++x) {
    Bits bits;
    std::memcpy(&bits, w + x, sizeof(T));
    peak = std::max(peak, bits & magnitude);
  }
  T result;
  std::memcpy(&result, &peak, sizeof(T));
  return result;
}

// Divide a unit filter by its peak where squares could leave the range; 0 where the filter is 0.
template <class T> T tame(T *w, int64_t count) {
  const T peak = peak_of(w, count);
  const T large = sizeof(T) == 4 ? T(1e12) : T(1e120);
  if (peak < std::numeric_limits<T>::min()) return 0;
  if (peak > 1 / large && peak < large) return 1;
  for (int64_t x = 0; x < count; ++x) w[x] /= peak;
  return peak;
}

// gram[u, v] += sum over channels of w[c, u] w[c, v], for ROWS taps u and LANES taps v.
template <class T, int ROWS>
void gram_tile(const T *w, int64_t channels, int64_t n, int64_t u, int64_t v, double *gram) {
  for (int64_t first = 0; first < channels; first += CHANNELS_OF_A_SUM) {
    const int64_t last = std::min(channels, first + CHANNELS_OF_A_SUM);
    Vector<T> sum[ROWS] = {};
    for (int64_t c = first; c < last; ++c) {
      const Vector<T> row = at(w + c * n + v);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) sum[r] += w[c * n + u + r] * row;
    }
    for (int r = 0; r < ROWS; ++r)
      for (int64_t l = 0; l < std::min<int64_t>(LANES, n - v); ++l)
        gram[(u + r) * n + v + l] += sum[r][l];
  }
}

template <class T>
using GramTile = void (*)(const T *, int64_t, int64_t, int64_t, int64_t, double *);
template <class T>
constexpr GramTile<T> GRAM_TILES[] = {
    gram_tile<T, 1>, gram_tile<T, 2>, gram_tile<T, 3>, gram_tile<T, 4>, gram_tile<T, 5>,
    gram_tile<T, 6>, gram_tile<T, 7>, gram_tile<T, 8>, gram_tile<T, 9>};

template <class T> void gram_of(const T *w, int64_t channels, int64_t n, double *gram) {
  std::fill(gram, gram + n * n, 0.0);
  for (int64_t u = 0; u < n; u += 9) {
    const int64_t rows = std::min<int64_t>(9, n - u);
    for (int64_t v = u / LANES * LANES; v < n; v += LANES) // the rest is the mirrored half
      GRAM_TILES<T>[rows - 1](w, channels, n, u, v, gram);
  }
}

// out[c, v] = sum over u of w[c, u] t[u, v], with rows of t padded to whole vectors. A row's last
// vector runs over into the next row, which is written after it.
template <class T>
void multiply(const T *w, const T *t, int64_t channels, int64_t n, T *out) {
  const int64_t width = filled_up(n);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t v = 0; v < width; v += LANES) {
      Vector<T> even = {}, odd = {};
      int64_t u = 0;
      for (; u + 1 < n; u += 2) {
        even += w[c * n + u] * at(t + u * width + v);
        odd += w[c * n + u + 1] * at(t + (u + 1) * width + v);
      }
      if (u < n) even += w[c * n + u] * at(t + u * width + v);
      at(out + c * n + v) = even + odd;
    }
}

// partners[i] = sum of a[j] over the partners j of filter i, from either side: subtracting a[i] from
// a total would lose every digit of a small filter beside a large one.
void sum_partners(const double *a, double *partners, int64_t members, int64_t L, bool adjacent) {
  std::vector<double> sum(L, 0.0);
  for (int64_t i = 0; i < members; ++i)
    for (int64_t h = 0; h < L; ++h) {
      partners[i * L + h] = sum[h];
      sum[h] = adjacent ? a[i * L + h] : sum[h] + a[i * L + h];
    }
  std::fill(sum.begin(), sum.end(), 0.0);
  for (int64_t i = members; i-- > 0;)
    for (int64_t h = 0; h < L; ++h) {
      partners[i * L + h] += sum[h];
      sum[h] = adjacent ? a[i * L + h] : sum[h] + a[i * L + h];
    }
}

// Memory that all threads share.
struct Shared {
  std::vector<double> a, partners, along, norm, peak;
};

double sum(const std::vector<double> &values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

template <class T> void crossed(Layer &layer, const Options &options, Shared &shared) {
  const int64_t n = layer.taps, C = layer.channels, L = layer.classes;
  const int64_t count = layer.groups * layer.members, size = C * n;
  const int64_t block = std::max<int64_t>(1, ELEMENTS_OF_A_TASK / size);
  const int64_t width = filled_up(n);
#pragma omp single
  {
    shared.a.assign(count * L, 0.0);
    shared.partners.resize(count * L);
    shared.norm.assign(count, 1.0);
    shared.peak.assign(count, 1.0);
    shared.along.resize(count);
  }
  std::vector<T> w(size + LANES), out(size + LANES), t(n * width);
  std::vector<double> gram(n * n);

#pragma omp for schedule(dynamic)
  for (int64_t first = 0; first < count; first += block)
    for (int64_t i = first; i < std::min(count, first + block); ++i) {
      view<T>(layer.filters, layer.filter_stride, layer, i, 0, C).read(w.data());
      if (options.unit) shared.peak[i] = tame(w.data(), size);
      if (shared.peak[i] == 0) continue;
      gram_of(w.data(), C, n, gram.data());
      double *a = &shared.a[i * L];
      for (int64_t u = 0; u < n; ++u)
        for (int64_t v = u; v < n; ++v) {
          const int32_t h = layer.pair_class[u * n + v];
          if (h < L) a[h] += gram[u * n + v];
        }
      if (options.unit) {
        double square = 0;
        for (int64_t u = 0; u < n; ++u) square += gram[u * n + u];
        shared.norm[i] = std::sqrt(square);
        for (int64_t h = 0; h < L; ++h) a[h] /= square;
      }
    }

#pragma omp single
  for (int64_t g = 0; g < layer.groups; ++g)
    sum_partners(&shared.a[g * layer.members * L], &shared.partners[g * layer.members * L],
                 layer.members, L, options.adjacent);

#pragma omp for schedule(dynamic)
  for (int64_t first = 0; first < count; first += block)
    for (int64_t i = first; i < std::min(count, first + block); ++i) {
      const double *partners = &shared.partners[i * L];
      double along = 0;
      for (int64_t h = 0; h < L; ++h)
        along += layer.multiplicity[h] * shared.a[i * L + h] * partners[h];
      shared.along[i] = along;
      if (!layer.gradient || shared.peak[i] == 0) continue;
      const double norm = shared.norm[i], peak = shared.peak[i];
      const double by = 2 * layer.weight * layer.factor / (norm * norm) / peak;
      for (int64_t u = 0; u < n; ++u)
        for (int64_t v = 0; v < n; ++v) {
          const int32_t h = layer.pair_class[u * n + v];
          const double spelled = h < L ? partners[h] : 0;
          t[u * width + v] = T(by * (spelled - (options.unit && u == v ? along : 0)));
        }
      view<T>(layer.filters, layer.filter_stride, layer, i, 0, C).read(w.data());
      if (peak != 1)
        for (int64_t x = 0; x < size; ++x) w[x] /= T(peak);
      multiply(w.data(), t.data(), C, n, out.data());
      view<T>(layer.gradient, layer.gradient_stride, layer, i, 0, C).add(out.data());
    }
#pragma omp single
  layer.value = 0.5 * layer.weight * sum(shared.along);
}

// Taps of LANES channels: tile[u] holds tap u.
template <class T> void read_tile(const View<T> &from, T divisor, T factor, Vector<T> *tile) {
  for (int64_t u = 0; u < from.taps; ++u) {
    Vector<T> lanes = {};
    for (int64_t l = 0; l < from.channels; ++l)
      lanes[l] = from.data[l * from.channel_stride + u * from.tap_stride];
    tile[u] = lanes / divisor * factor;
  }
}

template <class T> void add_tile(const View<T> &to, const Vector<T> *tile) {
  for (int64_t u = 0; u < to.taps; ++u)
    for (int64_t l = 0; l < to.channels; ++l)
      to.data[l * to.channel_stride + u * to.tap_stride] += tile[u][l];
}

// The pairs u <= v of every class, class after class.
struct Pairs {
  std::vector<int32_t> start, u, v;

  explicit Pairs(const Layer &layer) : start(1, 0) {
    for (int32_t h = 0; h < layer.classes; ++h) {
      for (int32_t a = 0; a < layer.taps; ++a)
        for (int32_t b = a; b < layer.taps; ++b)
          if (layer.pair_class[a * layer.taps + b] == h) u.push_back(a), v.push_back(b);
      start.push_back(int32_t(u.size()));
    }
  }
};

// Channels do not meet in the matched form, so each run of them walks through the filters on its
// own, once from either side, with the sum of the partners behind it.
template <class T> void matched(Layer &layer, const Options &options, Shared &shared) {
  const int64_t n = layer.taps, C = layer.channels, L = layer.classes, size = C * n;
  const int64_t count = layer.groups * layer.members;
  const int64_t runs = (C + CHANNELS_OF_A_TASK - 1) / CHANNELS_OF_A_TASK;
  const int64_t blocks = CHANNELS_OF_A_TASK / LANES;
#pragma omp single
  {
    shared.norm.assign(count, 1.0);
    shared.peak.assign(count, 1.0);
    shared.along.assign(runs * count, 0.0);
  }
  std::vector<T> w(size);
  if (options.unit) {
#pragma omp for
    for (int64_t i = 0; i < count; ++i) {
      view<T>(layer.filters, layer.filter_stride, layer, i, 0, C).read(w.data());
      shared.peak[i] = tame(w.data(), size);
      double square = 0;
      for (int64_t first = 0; first < size; first += CHANNELS_OF_A_SUM) {
        T part = 0;
        for (int64_t x = first; x < std::min(size, first + CHANNELS_OF_A_SUM); ++x)
          part += w[x] * w[x];
        square += part;
      }
      shared.norm[i] = std::sqrt(square);
    }
  }
  const Pairs pairs(layer);
  std::vector<Vector<T>> tile(n), out(n), a(L), near(L);
  std::vector<Vector<double>> behind(blocks * L);

#pragma omp for collapse(2) schedule(dynamic)
  for (int64_t g = 0; g < layer.groups; ++g)
    for (int64_t run = 0; run < runs; ++run)
      for (const bool ascending : {true, false}) {
        std::fill(behind.begin(), behind.end(), Vector<double>{});
        for (int64_t step = 0; step < layer.members; ++step) {
          const int64_t i = g * layer.members + (ascending ? step : layer.members - 1 - step);
          if (shared.peak[i] == 0) {
            if (options.adjacent) std::fill(behind.begin(), behind.end(), Vector<double>{});
            continue;
          }
          const T by = T(2 * layer.weight * layer.factor / shared.norm[i] / shared.peak[i]);
          Vector<double> along = {};
          for (int64_t b = 0; b < blocks; ++b) {
            const int64_t c = run * CHANNELS_OF_A_TASK + b * LANES;
            if (c >= C) break;
            const int64_t filled = std::min<int64_t>(LANES, C - c);
            read_tile(view<T>(layer.filters, layer.filter_stride, layer, i, c, filled),
                      T(shared.peak[i]), T(1 / shared.norm[i]), tile.data());
            for (int64_t h = 0; h < L; ++h) {
              Vector<T> total = {};
              for (int32_t p = pairs.start[h]; p < pairs.start[h + 1]; ++p)
                total += tile[pairs.u[p]] * tile[pairs.v[p]];
              const Vector<double> exact = convert<Vector<double>>(total);
              Vector<double> &sum = behind[b * L + h];
              along += layer.multiplicity[h] * exact * sum;
              near[h] = convert<Vector<T>>(sum);
              sum = options.adjacent ? exact : sum + exact;
            }
            if (!layer.gradient) continue;
            for (int64_t u = 0; u < n; ++u) {
              Vector<T> total = {};
              for (int64_t v = 0; v < n; ++v)
                if (const int32_t h = layer.pair_class[u * n + v]; h < L)
                  total += tile[v] * near[h];
              out[u] = total * by;
            }
            add_tile(view<T>(layer.gradient, layer.gradient_stride, layer, i, c, filled),
                     out.data());
          }
          for (int l = 0; l < LANES; ++l) shared.along[run * count + i] += along[l];
        }
      }

  if (options.unit && layer.gradient) { // g - W<g, W>, as <g, W> = 2 <a, N>
#pragma omp for
    for (int64_t i = 0; i < count; ++i) {
      if (shared.peak[i] == 0) continue;
      double along = 0;
      for (int64_t run = 0; run < runs; ++run) along += shared.along[run * count + i];
      const double norm = shared.norm[i];
      const double by = 2 * layer.weight * layer.factor / norm / shared.peak[i];
      const T of_unit = T(-by * along / norm), peak = T(shared.peak[i]);
      view<T>(layer.filters, layer.filter_stride, layer, i, 0, C).read(w.data());
      for (int64_t x = 0; x < size; ++x) w[x] = w[x] / peak * of_unit;
      view<T>(layer.gradient, layer.gradient_stride, layer, i, 0, C).add(w.data());
    }
  }
#pragma omp single
  layer.value = 0.5 * layer.weight * sum(shared.along);
}

template <class T> void similarity(Layer *layers, int64_t count, Options options, int threads) {
  Shared shared;
  int64_t products = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Layer &own = layers[i];
    products += own.groups * own.members * own.channels * own.taps * own.taps;
  }
#pragma omp parallel num_threads(threads) if (products > PRODUCTS_OF_A_THREAD)
  for (int64_t i = 0; i < count; ++i) // a layer at a time: its second pass finds it in the cache
    (options.matched ? matched<T> : crossed<T>)(layers[i], options, shared);
}

} // namespace

extern "C" void similarity_float32(Layer *layers, int64_t count, int matched, int unit,
                                   int adjacent, int threads) {
  similarity<float>(layers, count, {matched != 0, unit != 0, adjacent != 0}, threads);
}

extern "C" void similarity_float64(Layer *layers, int64_t count, int matched, int unit,
                                   int adjacent, int threads) {
  similarity<double>(layers, count, {matched != 0, unit != 0, adjacent != 0}, threads);
}
