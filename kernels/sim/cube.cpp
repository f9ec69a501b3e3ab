// Cube builtins: L1 to L0, mad, fixpipe.
#include <cmath>
#include <cstring>
#include <vector>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define PA_SIM_AVX2 1
#endif

#include "build_op.h"
#include "include/cce.h"

namespace sim {
namespace {

constexpr int kFractal = 512;         // bytes: 16 rows (or columns, in L0B) of 32
constexpr int kAccFractal = 16 * 16;  // elements of one in L0C, of four bytes each

// Cycles. L1 to L0: bandwidths of the Ascend C guide, architecture 2201; mad: pto-isa's cost model
// (cce_costmodel_cube.hpp); fixed parts of the loads and of fixpipe: assumed.
constexpr float kLoadFixed = 10;
constexpr float kLoadBytesL0a = 256;
constexpr float kLoadBytesL0b = 128;
constexpr float kGmLoadFixed = 50;
constexpr float kMadFixed = 6;
constexpr float kFixpipeFixed = 30;
constexpr float kFixpipeBytesL1 = 128;

constexpr int kBelowNoBarrier = 10;  // fractals of C; smaller mads need PIPE_M barriers in between

Mem source_of(Load way) { return way == Load::kL1ToL0a || way == Load::kL1ToL0b ? kL1 : kGm; }
Mem target_of(Load way) {
  switch (way) {
    case Load::kL1ToL0a:
    case Load::kGmToL0a:
      return kL0a;
    case Load::kGmToL1:
      return kL1;
    default:
      return kL0b;
  }
}

void close_gaps(Access& access) {
  if (access.inner_stride != access.bytes) return;
  access.bytes *= access.inner;
  access.inner = 1;
}

float load_cycles(Load way, int64_t bytes) {
  switch (way) {
    case Load::kL1ToL0a:
      return kLoadFixed + bytes / kLoadBytesL0a;
    case Load::kL1ToL0b:
      return kLoadFixed + bytes / kLoadBytesL0b;
    default:
      return kGmLoadFixed;
  }
}

// ---- Loads --------------------------------------------------------------------------------------

template <class T, int N>
void transpose_square(T* to, const T* from) {
  for (int row = 0; row < N; ++row) {
    for (int column = 0; column < N; ++column) to[column * N + row] = from[row * N + column];
  }
}

// Arguments: fractals, source and destination strides in bytes, transpose.
void copy_fractals(Core& core, const Op& op) {
  const uint8_t* source = place<uint8_t>(core, op.access[0]);
  uint8_t* target = place<uint8_t>(core, op.access[1]);
  for (int64_t i = 0; i < op.arg[0]; ++i) {
    if (op.arg[3]) {
      uint16_t tile[kFractal / 2];
      std::memcpy(tile, source, kFractal);
      transpose_square<uint16_t, 16>(reinterpret_cast<uint16_t*>(target), tile);
    } else {
      std::memcpy(target, source, kFractal);
    }
    source += op.arg[1];
    target += op.arg[2];
  }
}

// Arguments: squares, source and destination strides in bytes, stride of a square's two fractals
// at the destination, element size.
void copy_squares(Core& core, const Op& op) {
  const uint8_t* source = place<uint8_t>(core, op.access[0]);
  uint8_t* target = place<uint8_t>(core, op.access[1]);
  for (int64_t i = 0; i < op.arg[0]; ++i) {
    const uint8_t* from = source + i * op.arg[1];
    uint8_t* to = target + i * op.arg[2];
    switch (op.arg[4]) {
      case 1: {  // two 16x32 fractals are the upper and the lower half of a 32x32 square
        uint8_t square[32 * 32];
        transpose_square<uint8_t, 32>(square, from);
        std::memcpy(to, square, kFractal);
        std::memcpy(to + op.arg[3], square + kFractal, kFractal);
        break;
      }
      case 2: {
        uint16_t tile[kFractal / 2];
        std::memcpy(tile, from, kFractal);
        transpose_square<uint16_t, 16>(reinterpret_cast<uint16_t*>(to), tile);
        break;
      }
      default: {  // two 16x8 fractals are the left and the right half of a 16x16 square
        const auto in = [&](int row, int column) {
          return from + (column / 8) * kFractal + (row * 8 + column % 8) * 4;
        };
        for (int row = 0; row < 16; ++row) {
          for (int column = 0; column < 16; ++column) {
            std::memcpy(to + (column / 8) * op.arg[3] + (row * 8 + column % 8) * 4, in(column, row),
                        4);
          }
        }
      }
    }
  }
}

// ---- mad ----------------------------------------------------------------------------------------

void widen(const float* from, float* to, int count) { std::memcpy(to, from, count * 4); }
void widen(const int8_t* from, int32_t* to, int count) {
  for (int i = 0; i < count; ++i) to[i] = from[i];
}
void widen(const half* from, float* to, int count) {
#if defined(PA_SIM_AVX2)
  for (int i = 0; i < count; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i))));
  }
#else
  for (int i = 0; i < count; ++i) to[i] = from[i];
#endif
}
void widen(const bfloat16_t* from, float* to, int count) {
#if defined(PA_SIM_AVX2)
  for (int i = 0; i < count; i += 8) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(from + i)));
    _mm256_storeu_si256((__m256i*)(to + i), _mm256_slli_epi32(wide, 16));
  }
#else
  for (int i = 0; i < count; ++i) to[i] = from[i];
#endif
}

// out[r * 4 + c] = sum over k of a[r][k] * b[c][k], for two rows and four columns.
template <class Acc>
void dots(const Acc* a0, const Acc* a1, const Acc* b, int64_t b_stride, int k, Acc* out) {
  for (int c = 0; c < 4; ++c) {
    Acc s0 = 0, s1 = 0;
    for (int i = 0; i < k; ++i) {
      s0 += a0[i] * b[c * b_stride + i];
      s1 += a1[i] * b[c * b_stride + i];
    }
    out[c] = s0;
    out[4 + c] = s1;
  }
}
#if defined(PA_SIM_AVX2)
__m128 sums(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}
template <>
void dots(const float* a0, const float* a1, const float* b, int64_t b_stride, int k, float* out) {
  const float* b0 = b;
  const float* b1 = b + b_stride;
  const float* b2 = b + 2 * b_stride;
  const float* b3 = b + 3 * b_stride;
  __m256 s[8];
  for (auto& x : s) x = _mm256_setzero_ps();
  for (int i = 0; i < k; i += 8) {
    const __m256 x0 = _mm256_loadu_ps(a0 + i), x1 = _mm256_loadu_ps(a1 + i);
    const __m256 y0 = _mm256_loadu_ps(b0 + i), y1 = _mm256_loadu_ps(b1 + i);
    const __m256 y2 = _mm256_loadu_ps(b2 + i), y3 = _mm256_loadu_ps(b3 + i);
    s[0] = _mm256_fmadd_ps(x0, y0, s[0]);
    s[1] = _mm256_fmadd_ps(x0, y1, s[1]);
    s[2] = _mm256_fmadd_ps(x0, y2, s[2]);
    s[3] = _mm256_fmadd_ps(x0, y3, s[3]);
    s[4] = _mm256_fmadd_ps(x1, y0, s[4]);
    s[5] = _mm256_fmadd_ps(x1, y1, s[5]);
    s[6] = _mm256_fmadd_ps(x1, y2, s[6]);
    s[7] = _mm256_fmadd_ps(x1, y3, s[7]);
  }
  _mm_storeu_ps(out, sums(s[0], s[1], s[2], s[3]));
  _mm_storeu_ps(out + 4, sums(s[4], s[5], s[6], s[7]));
}
#endif

// Arguments: m, k, n, fractals in K that a row of A has in L0A, start from zero.
//
// A and a panel of 16 columns of B are widened to rows of accumulator type, k next to k; tails of k
// become zero on both sides, as the hardware leaves them out.
template <class T, class Acc>
void multiply(Core& core, const Op& op) {
  constexpr int kPer = kBlock / sizeof(T);  // elements in K of one fractal
  const int m = static_cast<int>(op.arg[0]), k = static_cast<int>(op.arg[1]);
  const int n = static_cast<int>(op.arg[2]);
  const int64_t a_row = op.arg[3];
  const bool from_zero = op.arg[4];
  const T* a = place<T>(core, op.access[0]);
  const T* b = place<T>(core, op.access[1]);
  Acc* c = place<Acc>(core, op.access[2]);
  const int blocks = (k + kPer - 1) / kPer;
  const int depth = std::max(8, blocks * kPer);
  const int m16 = (m + 15) / 16, n16 = (n + 15) / 16, even = (m + 1) / 2 * 2;

  static thread_local std::vector<Acc> scratch;
  scratch.resize(static_cast<size_t>(even + 16) * depth);
  Acc* wide_a = scratch.data();
  Acc* wide_b = wide_a + static_cast<size_t>(even) * depth;
  const auto cut = [&](Acc* row) {
    for (int i = k; i < depth; ++i) row[i] = 0;
  };
  if (m == 1) {  // a vector, k next to k
    const int whole = k / 8 * 8;
    widen(a, wide_a, whole);
    for (int i = whole; i < k; ++i) wide_a[i] = static_cast<Acc>(a[i]);
  } else {
    for (int i = 0; i < m; ++i) {
      const T* row = a + (i / 16 * a_row * 16 + i % 16) * kPer;
      for (int block = 0; block < blocks; ++block) {
        widen(row + int64_t{block} * 16 * kPer, wide_a + int64_t{i} * depth + block * kPer, kPer);
      }
    }
  }
  for (int i = 0; i < m; ++i) cut(wide_a + int64_t{i} * depth);
  if (even > m) std::fill_n(wide_a + int64_t{m} * depth, depth, Acc{0});

  for (int panel = 0; panel < n16; ++panel) {
    for (int block = 0; block < blocks; ++block) {
      const T* fractal = b + (int64_t{block} * n16 + panel) * 16 * kPer;
      for (int j = 0; j < 16; ++j) {
        widen(fractal + j * kPer, wide_b + int64_t{j} * depth + block * kPer, kPer);
      }
    }
    for (int j = 0; j < 16; ++j) cut(wide_b + int64_t{j} * depth);
    const int columns = std::min(16, n - panel * 16);
    Acc* out = c + int64_t{panel} * m16 * kAccFractal;
    for (int i = 0; i < m; i += 2) {
      Acc sum[2][16];
      for (int j = 0; j < columns; j += 4) {
        Acc part[8];
        dots<Acc>(wide_a + int64_t{i} * depth, wide_a + int64_t{i + 1} * depth,
                  wide_b + int64_t{j} * depth, depth, depth, part);
        std::memcpy(&sum[0][j], part, 4 * sizeof(Acc));
        std::memcpy(&sum[1][j], part + 4, 4 * sizeof(Acc));
      }
      for (int row = i; row < std::min(i + 2, m); ++row) {
        Acc* to = out + row * 16;
        for (int j = 0; j < columns; ++j) to[j] = sum[row - i][j] + (from_zero ? Acc{0} : to[j]);
      }
    }
    if (!from_zero) continue;
    // What the fractals hold outside C is unspecified.
    const int poison = g_launch->options().poison;
    if (columns < 16) {
      for (int i = 0; i < m; ++i) {
        std::memset(out + i * 16 + columns, poison, (16 - columns) * sizeof(Acc));
      }
    }
    std::memset(out + m * 16, poison, (m16 * 16 - m) * 16 * sizeof(Acc));
  }
}

// ---- Fixpipe ------------------------------------------------------------------------------------

template <class To, class From>
void convert(const From* from, uint8_t* to, int count, bool relu) {
  for (int i = 0; i < count; ++i) {
    From value = from[i];
    if (relu && value < 0) value = 0;
    const To out = static_cast<To>(value);
    std::memcpy(to + i * sizeof(To), &out, sizeof(To));
  }
}

#if defined(PA_SIM_AVX2)
template <>
void convert<half, float>(const float* from, uint8_t* to, int count, bool relu) {
  float in[16];
  __m128i out[2];
  for (int i = 0; i < count; ++i) in[i] = relu && from[i] < 0 ? 0.0f : from[i];
  for (int i = count; i < 16; ++i) in[i] = 0;
  out[0] = _mm256_cvtps_ph(_mm256_loadu_ps(in), _MM_FROUND_TO_NEAREST_INT);
  out[1] = _mm256_cvtps_ph(_mm256_loadu_ps(in + 8), _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(to, out, count * sizeof(half));
}
#endif

// Columns of 16 elements (or of `width`, the last one maybe less) by rows. Arguments: rows, columns
// in all, width, source stride of a column in bytes, destination strides of a column and of a row
// in bytes, relu, type, atomic state.
template <class To, class From>
void store_columns(Core& core, const Op& op) {
  const uint8_t* source = place<uint8_t>(core, op.access[0]);
  uint8_t* target = place<uint8_t>(core, op.access[1]);
  const int width = static_cast<int>(op.arg[2]);
  const bool relu = op.arg[6], atomic = op.access[1].atomic;
  for (int64_t at = 0; at < op.arg[1]; at += width) {
    const int count = static_cast<int>(std::min<int64_t>(width, op.arg[1] - at));
    // A column of 8 is one half of a fractal's 16.
    const uint8_t* column = source + at / 16 * op.arg[3] + at % 16 * sizeof(From);
    uint8_t* to = target + at / width * op.arg[4];
    for (int64_t row = 0; row < op.arg[0]; ++row) {
      const auto* from = reinterpret_cast<const From*>(column) + row * 16;
      if (atomic) {
        uint8_t part[16 * sizeof(To)];
        convert<To, From>(from, part, count, relu);
        atomic_store(op.arg[8], to, part, count * sizeof(To));
      } else if (std::is_same_v<To, From> && !relu) {
        if (count == 16) {
          std::memcpy(to, from, 16 * sizeof(From));
        } else {
          std::memcpy(to, from, count * sizeof(From));
        }
      } else {
        convert<To, From>(from, to, count, relu);
      }
      to += op.arg[5];
    }
  }
}

Execute store_for(Type to, Type from) {
  if (from == Type::kI32) return to == Type::kI32 ? store_columns<int32_t, int32_t> : nullptr;
  switch (to) {
    case Type::kF32:
      return store_columns<float, float>;
    case Type::kF16:
      return store_columns<half, float>;
    case Type::kBf16:
      return store_columns<bfloat16_t, float>;
    default:
      return nullptr;
  }
}

// The mode that a plain cast from L0C needs.
int plain_quant(Type to) {
  return to == Type::kF16 ? F322F16 : to == Type::kBf16 ? F322BF16 : NoQuant;
}

}  // namespace

void load_fractals(const char* name, Load way, int size, uint64_t dst, uint64_t src, F16 base,
                   F8 repeat, F16 src_stride, F16 dst_gap, bool transpose, int decrement,
                   Site site) {
  // Units: Ascend C, LoadData 2D; indices and strides in fractals, the destination's is a gap.
  const Mem from_mem = source_of(way), to_mem = target_of(way);
  Op op = make_op(name, from_mem == kGm ? kMte2 : kMte1, site);
  const int64_t count = take(op, "repeat", repeat);
  const int64_t start = take(op, "baseIdx", base) * kFractal;
  const int64_t step = take(op, "srcStride", src_stride) * (decrement ? -kFractal : kFractal);
  const int64_t dst_step = (take(op, "dstGap", dst_gap) + 1) * kFractal;
  if (count == 0) return;
  if (transpose && size != 2) not_modelled("transpose of elements that have not 16 bits", site);
  if (from_mem != kGm) aligned(op, from_mem, src, kBlock);
  aligned(op, to_mem, dst, to_mem == kL1 ? kBlock : kFractal);
  Access& from = op.add(from_mem, false, src + start, kFractal);
  Access& to = op.add(to_mem, true, dst, kFractal);
  from.inner = to.inner = static_cast<uint32_t>(count);
  from.inner_stride = step;
  to.inner_stride = dst_step;
  close_gaps(from);
  close_gaps(to);
  op.arg[0] = count;
  op.arg[1] = step;
  op.arg[2] = dst_step;
  op.arg[3] = transpose;
  op.cycles = load_cycles(way, count * kFractal);
  op.execute = copy_fractals;
  g_launch->issue(op);
}

void load_transposed(const char* name, Load way, int size, uint64_t dst, uint64_t src, F16 base,
                     F8 repeat, F16 src_stride, F16 dst_gap, bool decrement, F16 dst_fractal_gap,
                     Site site) {
  // Units: Ascend C, LoadDataWithTranspose; the source's in squares, the destination's in fractals.
  Op op = make_op(name, kMte1, site);
  const int64_t square = size == 2 ? kFractal : 2 * kFractal;
  const int64_t count = take(op, "repeat", repeat);
  const int64_t start = take(op, "indexID", base) * square;
  const int64_t step = take(op, "srcStride", src_stride) * (decrement ? -square : square);
  const int64_t dst_step = (take(op, "dstGap", dst_gap) + 1) * kFractal;
  const int64_t half_step = (take(op, "dstFracGap", dst_fractal_gap) + 1) * kFractal;
  if (count == 0) return;
  aligned(op, kL1, src, kBlock);
  aligned(op, target_of(way), dst, kFractal);
  Access& from = op.add(kL1, false, src + start, static_cast<uint32_t>(square));
  from.inner = static_cast<uint32_t>(count);
  from.inner_stride = step;
  close_gaps(from);
  Access& to = op.add(target_of(way), true, dst, kFractal);
  to.inner = static_cast<uint32_t>(count);
  to.inner_stride = dst_step;
  if (size != 2) {
    to.outer = 2;
    to.outer_stride = half_step;
  }
  close_gaps(to);
  op.arg[0] = count;
  op.arg[1] = step;
  op.arg[2] = dst_step;
  op.arg[3] = half_step;
  op.arg[4] = size;
  op.cycles = load_cycles(way, count * square);
  op.execute = copy_squares;
  g_launch->issue(op);
}

void mad(Type input, uint64_t c, uint64_t a, uint64_t b, F16 m_field, F16 k_field, F16 n_field,
         F8 unit_flag, bool k_direction_align, bool from_bias, bool from_zero, Site site) {
  // Layouts and limits: Ascend C, Mmad, its GEMV and K-direction chapters.
  Op op = make_op("mad", kM, site);
  const int64_t m = take(op, "m", m_field), k = take(op, "k", k_field), n = take(op, "n", n_field);
  at_most(op, "m", m, 4095);
  at_most(op, "k", k, 4095);
  at_most(op, "n", n, 4095);
  if (take(op, "unitFlag", unit_flag) != 0) not_modelled("mad with a unit flag", site);
  if (from_bias && !from_zero) not_modelled("mad with a bias table", site);
  if (m == 0 || k == 0 || n == 0) return;
  aligned(op, kL0a, a, kFractal);
  aligned(op, kL0b, b, kFractal);
  aligned(op, kL0c, c, 64);
  const int size = size_of(input);
  const int64_t per = kBlock / size;
  const int64_t m16 = (m + 15) / 16, n16 = (n + 15) / 16, blocks = (k + per - 1) / per;
  // Rows of A may be aligned to 16 in K where a fractal has 8; the surplus fractal is not read.
  const int64_t a_row = input == Type::kF32 && k_direction_align ? (k + 15) / 16 * 2 : blocks;
  if (m == 1) {
    op.add(kL0a, false, a, static_cast<uint32_t>((k * size + kBlock - 1) / kBlock * kBlock));
  } else {
    Access& rows = op.add(kL0a, false, a, static_cast<uint32_t>(blocks * kFractal));
    rows.inner = static_cast<uint32_t>(m16);
    rows.inner_stride = a_row * kFractal;
    close_gaps(rows);
  }
  op.add(kL0b, false, b, static_cast<uint32_t>(blocks * n16 * kFractal));
  const auto c_bytes = static_cast<uint32_t>(m16 * n16 * kAccFractal * 4);
  op.add(kL0c, true, c, c_bytes);
  if (!from_zero) op.add(kL0c, false, c, c_bytes);
  op.arg[0] = m;
  op.arg[1] = k;
  op.arg[2] = n;
  op.arg[3] = a_row;
  op.arg[4] = from_zero;
  op.large_mad = (m / 16) * (n / 16) >= kBelowNoBarrier;
  op.cycles = kMadFixed + static_cast<float>(m16 * blocks * n16 * (input == Type::kF32 ? 2 : 1));
  switch (input) {
    case Type::kF16:
      op.execute = multiply<half, float>;
      break;
    case Type::kBf16:
      op.execute = multiply<bfloat16_t, float>;
      break;
    case Type::kF32:
      op.execute = multiply<float, float>;
      break;
    default:
      op.execute = multiply<int8_t, int32_t>;
      break;
  }
  g_launch->issue(op);
}

void fixpipe(const Fixpipe& what, uint64_t dst, uint64_t src, F16 columns, F16 rows, F32 dst_stride,
             F16 src_stride, F8 unit_flag, int quant, F8 relu, bool channel_split, bool nz_to_nd) {
  // Units and limits: Ascend C, Fixpipe L0C to GM, its NZ2ND, NZ2NZ and channel-split chapters.
  Op op = make_op(what.name, kFix, what.site);
  const int64_t n = take(op, "NSize", columns), m = take(op, "MSize", rows);
  at_most(op, "NSize", n, 4095);
  if (nz_to_nd) at_most(op, "MSize", m, 8192);
  const int64_t pitch = take(op, "dstStride", dst_stride);
  const int64_t column_stride = take(op, "srcStride", src_stride) * 64;
  const int64_t relu_mode = take(op, "ReLUPRE", relu);
  op.execute = store_for(what.to, what.from);
  if (op.execute == nullptr || quant != plain_quant(what.to)) {
    not_modelled((std::string(what.name) + " with quantisation").c_str(), what.site);
  }
  if (take(op, "UnitFlagMode", unit_flag) != 0) {
    not_modelled((std::string(what.name) + " with a unit flag").c_str(), what.site);
  }
  if (relu_mode > 1) not_modelled("fixpipe with a relu other than the plain one", what.site);
  if (channel_split && (nz_to_nd || !what.to_gm || what.to != Type::kF32)) {
    not_modelled("channel split of anything but float in NZ to GM", what.site);
  }
  if (nz_to_nd && !what.to_gm) not_modelled("NZ to ND in L1", what.site);
  if (m == 0 || n == 0) return;
  const int size = size_of(what.to);
  const int64_t width = channel_split ? 8 : 16;
  if (!nz_to_nd && n % width != 0) {
    std::ostringstream text;
    text << what.name << " at " << site_text(what.site) << ": NSize is " << n
         << ", without NZ2ND it has to be a multiple of " << width;
    g_launch->find("argument out of range", text.str());
  }
  aligned(op, kL0c, src, 64);
  const Mem to_mem = what.to_gm ? kGm : kL1;
  if (!what.to_gm) aligned(op, kL1, dst, kBlock);
  const int64_t n_columns = (n + width - 1) / width;
  op.arg[0] = m;
  op.arg[1] = n;
  op.arg[2] = width;
  op.arg[3] = column_stride;
  op.arg[4] = nz_to_nd ? width * size : pitch * kBlock;
  op.arg[5] = nz_to_nd ? pitch * size : width * size;
  op.arg[6] = relu_mode;
  const uint64_t state = what.to_gm ? g_launch->current().registers[kAtomic] : 0;
  op.arg[8] = static_cast<int64_t>(state);
  const bool atomic = atomic_type(state) != Type::kNone;
  if (atomic && atomic_type(state) != what.to) {
    g_launch->find("atomic type", std::string(what.name) + " at " + site_text(what.site) +
                                      ": the type stored is not the one that set_atomic names");
  }
  op.cycles = kFixpipeFixed + (what.to_gm ? 0 : m * n * size / kFixpipeBytesL1);

  // ND_PARA: matrices, source stride in fractals, destination stride in elements.
  const uint64_t nd = nz_to_nd ? g_launch->current().registers[kNdPara] : 1;
  const int64_t matrices = nd & 0xffff;
  const int64_t src_matrix = static_cast<int64_t>(nd >> 16 & 0xffff) * 1024;
  const int64_t dst_matrix = static_cast<int64_t>(nd >> 32 & 0xffff) * size;
  for (int64_t matrix = 0; matrix < matrices; ++matrix) {
    op.num_accesses = 0;
    Access& from = op.add(kL0c, false, src + matrix * src_matrix, static_cast<uint32_t>(m * 64));
    from.inner = static_cast<uint32_t>((n + 15) / 16);
    from.inner_stride = column_stride;
    close_gaps(from);
    Access& to = op.add(to_mem, true, dst + matrix * dst_matrix, 0);
    to.atomic = atomic;
    if (nz_to_nd) {
      to.bytes = static_cast<uint32_t>(n * size);
      to.inner = static_cast<uint32_t>(m);
      to.inner_stride = op.arg[5];
    } else {
      to.bytes = static_cast<uint32_t>(m * width * size);
      to.inner = static_cast<uint32_t>(n_columns);
      to.inner_stride = op.arg[4];
    }
    close_gaps(to);
    g_launch->issue(op);
    op.cycles = 0;
  }
}

void fixpipe_packed(const Fixpipe& what, uint64_t dst, uint64_t src, uint64_t xm, uint64_t xt) {
  // Fields: pto-isa, npu/a2a3 TStore and TPrint. Bits that they leave zero have other meanings.
  const auto field = [](uint64_t word, int shift, int bits) {
    return static_cast<int64_t>(word >> shift & ((uint64_t{1} << bits) - 1));
  };
  constexpr uint64_t kKnown = 0xffffull | 0xfffull << 32;
  if ((xm & 0xf) != 0 || (xt & ~kKnown) != 0) {
    not_modelled((std::string(what.name) + " with these packed bits").c_str(), what.site);
  }
  fixpipe(what, dst, src, field(xm, 4, 12), field(xm, 16, 16), field(xm, 32, 32), field(xt, 0, 16),
          field(xt, 32, 2), static_cast<int>(field(xt, 34, 5)), field(xt, 39, 3),
          field(xt, 42, 1) != 0, field(xt, 43, 1) != 0);
}

}  // namespace sim
