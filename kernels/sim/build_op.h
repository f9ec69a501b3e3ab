// Small tools for turning a builtin's arguments into an Op.
#pragma once

#include <sstream>

#include "core.h"

namespace sim {

// The field's value, cut to its width as the hardware would; a value that does not fit is a
// finding.
template <int Bits>
int64_t take(const Op& op, const char* argument, Field<Bits> field) {
  if constexpr (Bits == 64) {
    return field.value;
  } else {
    constexpr int64_t kLimit = int64_t{1} << Bits;
    if (field.value >= 0 && field.value < kLimit) return field.value;
    std::ostringstream text;
    text << op.name << " at " << site_text(op.site) << ": " << argument << " is " << field.value
         << ", which does not fit in its " << Bits << " bits";
    g_launch->find("argument out of range", text.str());
    return field.value & (kLimit - 1);
  }
}

// As `take`, with a smaller limit than the field's width gives.
inline void at_most(const Op& op, const char* argument, int64_t value, int64_t limit) {
  if (value <= limit) return;
  std::ostringstream text;
  text << op.name << " at " << site_text(op.site) << ": " << argument << " is " << value
       << ", the hardware takes at most " << limit;
  g_launch->find("argument out of range", text.str());
}

inline void aligned(const Op& op, Mem mem, uint64_t address, uint64_t to) {
  if (address % to == 0) return;
  std::ostringstream text;
  text << op.name << " at " << site_text(op.site) << ": address " << address << " in "
       << kMemNames[mem] << " is not a multiple of " << to;
  g_launch->find("misaligned", text.str());
}

inline Op make_op(const char* name, Pipe pipe, Site site) {
  Op op;
  op.name = name;
  op.pipe = pipe;
  op.site = site;
  return op;
}

// Pointer to what an access starts at: a local memory of the core, or GM.
template <class T>
T* place(Core& core, const Access& access) {
  if (access.mem == kGm) return reinterpret_cast<T*>(access.base);
  return reinterpret_cast<T*>(core.mem[access.mem] + access.base);
}

}  // namespace sim
