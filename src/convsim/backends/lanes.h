// Vectors of sixteen numbers, which the compiler makes of whatever registers the machine has.

#pragma once

#include <cstdint>

namespace {

constexpr int LANES = 16;

template <class T> struct Lanes {
  typedef T type __attribute__((vector_size(LANES * sizeof(T)), aligned(alignof(T)), may_alias));
};
template <class T> using Vector = typename Lanes<T>::type;

template <class T> Vector<T> &at(T *p) { return *reinterpret_cast<Vector<T> *>(p); }
template <class T> const Vector<T> &at(const T *p) {
  return *reinterpret_cast<const Vector<T> *>(p);
}
template <class To, class From> To convert(From v) { return __builtin_convertvector(v, To); }

inline int64_t filled_up(int64_t count, int64_t to = LANES) { return (count + to - 1) / to * to; }

} // namespace
