// The happens-before check: every access against the last ones to the same bytes.
#include "shadow.h"

#include <cstdlib>
#include <map>
#include <sstream>
#include <tuple>
#include <unordered_map>

namespace sim {
namespace {

std::vector<Site> g_sites;
std::map<std::tuple<const char*, int, const void*>, uint32_t> g_site_ids;

uint32_t site_id(const Site& site) {
  const auto [place, fresh] = g_site_ids.try_emplace(std::tuple(site.file, site.line, site.pc),
                                                     static_cast<uint32_t>(g_sites.size()));
  if (fresh) g_sites.push_back(site);
  return place->second;
}

// One stretch of GM within a page.
struct Stretch {
  uint16_t begin;
  uint16_t end;
  uint16_t core;
  uint8_t pipe;
  bool write;
  bool atomic;
  uint32_t epoch;
  uint32_t site;
};

constexpr int kPageBits = 12;
std::unordered_map<uint64_t, std::vector<Stretch>> g_pages;

struct Check {
  Launch& launch;
  Core& core;
  const Op& op;
  const Clock& clock;
  const KnownPtr& known;
  uint32_t epoch;
  uint32_t site;

  const char* conflict(bool first_write, bool second_write) const {
    return first_write ? (second_write ? "WAW" : "RAW") : "WAR";
  }

  void hazard(const char* kind, const std::string& mem, uint64_t begin, uint64_t end,
              bool first_write, const Core& first_core, Pipe first_pipe, uint32_t first_site,
              bool second_write) const {
    std::ostringstream text;
    text << core_text(core) << " " << kPipeNames[op.pipe] << " "
         << (second_write ? "writes" : "reads") << " at " << site_text(op.site) << " (" << op.name
         << ") what ";
    if (&first_core != &core) text << core_text(first_core) << " ";
    text << kPipeNames[first_pipe] << " " << (first_write ? "wrote" : "read") << " at "
         << site_text(g_sites[first_site]) << ", and nothing orders the two";
    launch.find_at(key(kind, mem, first_site), {kind, mem, begin, end, text.str(), op_id()});
  }

  uint64_t op_id() const {
    return (static_cast<uint64_t>(core.index) * kPipes + op.pipe + 1) << 32 | epoch;
  }

  // One finding for a pair of sites, whatever the cores.
  std::string key(const char* kind, const std::string& mem, uint32_t first_site) const {
    return kind + mem + (core.cube ? " cube " : " vector ") + std::to_string(first_site) + " " +
           std::to_string(site);
  }

  bool ordered(const Touch& touch) const { return clock.done[touch.pipe] >= touch.epoch; }

  // mad adds to L0C in order by itself when the tile is large enough (Ascend C, Mmad: below ten
  // fractals a pipe_barrier(PIPE_M) is needed).
  bool accumulates(Mem mem, uint8_t pipe) const {
    return mem == kL0c && pipe == kM && op.pipe == kM && op.large_mad;
  }

  void local(Mem mem, uint64_t index, uint32_t mask, bool write) const {
    Block& block = core.shadow->blocks[mem][index];
    for (const Touch& writer : block.writers) {
      if ((writer.mask & mask) && !ordered(writer) && !accumulates(mem, writer.pipe)) {
        const uint32_t both = writer.mask & mask;
        hazard(write ? "WAW" : "RAW", kMemNames[mem], index * kBlock + __builtin_ctz(both),
               index * kBlock + 32 - __builtin_clz(both), true, core,
               static_cast<Pipe>(writer.pipe), writer.site, write);
      }
    }
    if (!write) {
      if ((block.written & mask) != mask) launch.note_unwritten(op);
      // Where to remember the read: with an older one of this pipe that it covers, else in a free
      // slot, else in place of a read that is known to be complete; else the older bytes of this
      // pipe take the new epoch along.
      Touch* covered = nullptr;
      Touch* free = nullptr;
      Touch* complete = nullptr;
      Touch* same = &block.readers[2];
      for (Touch& reader : block.readers) {
        if (reader.mask == 0) {
          free = &reader;
        } else if (reader.pipe == op.pipe &&
                   (reader.epoch == epoch || (reader.mask & ~mask) == 0)) {
          covered = &reader;
        } else if (ordered(reader)) {
          complete = &reader;
        } else if (reader.pipe == op.pipe) {
          same = &reader;
        }
      }
      if (covered || !(free || complete)) {
        Touch& slot = covered ? *covered : *same;
        slot = {epoch, slot.mask | mask, site, op.pipe};
      } else {
        *(free ? free : complete) = {epoch, mask, site, op.pipe};
      }
      return;
    }
    for (Touch& reader : block.readers) {
      if ((reader.mask & mask) == 0) continue;
      if (reader.pipe != op.pipe && !ordered(reader)) {
        const uint32_t both = reader.mask & mask;
        hazard("WAR", kMemNames[mem], index * kBlock + __builtin_ctz(both),
               index * kBlock + 32 - __builtin_clz(both), false, core,
               static_cast<Pipe>(reader.pipe), reader.site, true);
      }
      reader.mask &= ~mask;
    }
    block.written |= mask;
    Touch& newest = block.writers[0];
    if (newest.epoch == epoch && newest.pipe == op.pipe && newest.mask != 0) {
      newest.mask |= mask;  // more of the same operation
      block.writers[1].mask &= ~mask;
      return;
    }
    const uint32_t rest = newest.mask & ~mask;
    if (rest != 0) block.writers[1] = {newest.epoch, rest, newest.site, newest.pipe};
    block.writers[1].mask &= ~mask;
    newest = {epoch, mask, site, op.pipe};
  }

  bool ordered(const Stretch& stretch) const {
    const Clock& theirs = stretch.core == core.index ? clock : known->done[stretch.core];
    return theirs.done[stretch.pipe] >= stretch.epoch;
  }

  void gm_page(uint64_t page, uint32_t begin, uint32_t end, bool write, bool atomic) const {
    std::vector<Stretch>& list = g_pages[page];
    bool merged = false;
    for (size_t i = 0; i < list.size();) {
      Stretch& old = list[i];
      const bool mine = old.core == core.index && old.pipe == op.pipe;
      // One entry for reads of the same operation side by side, and for what a new read covers; to
      // give older bytes the new epoch would blame what is in order.
      const bool joins = old.epoch == epoch ? old.begin <= end && begin <= old.end
                                            : begin <= old.begin && old.end <= end;
      if (!write && !old.write && mine && joins && !merged) {
        old.begin = std::min<uint32_t>(old.begin, begin);
        old.end = std::max<uint32_t>(old.end, end);
        old.epoch = epoch;
        old.site = site;
        merged = true;
      }
      if (old.end <= begin || end <= old.begin || (!write && !old.write) ||
          (atomic && old.atomic) || (mine && !old.write)) {
        ++i;
        continue;
      }
      const Core& other = *launch.cores()[old.core];
      const uint64_t at = page << kPageBits;
      if (!ordered(old)) {
        report_gm(conflict(old.write, write), at + std::max<uint32_t>(old.begin, begin),
                  at + std::min<uint32_t>(old.end, end), old, other, write);
      } else if (launch.options().strict_visibility && old.write && old.core != core.index &&
                 known->visible[old.core].done[old.pipe] < old.epoch) {
        report_unfenced(at + std::max<uint32_t>(old.begin, begin), old, other);
      }
      if (write && begin <= old.begin && old.end <= end) {
        old = list.back();
        list.pop_back();
      } else {
        ++i;
      }
    }
    if (merged) return;
    list.push_back({static_cast<uint16_t>(begin), static_cast<uint16_t>(end),
                    static_cast<uint16_t>(core.index), op.pipe, write, atomic, epoch, site});
  }

  void report_gm(const char* kind, uint64_t begin, uint64_t end, const Stretch& old,
                 const Core& other, bool write) const {
    const Region* region = launch.region_of(begin);
    const std::string mem = region ? "GM " + region->name : "GM";
    const uint64_t base = region ? region->begin : 0;
    hazard(kind, mem, begin - base, end - base, old.write, other, static_cast<Pipe>(old.pipe),
           old.site, write);
  }

  void report_unfenced(uint64_t begin, const Stretch& old, const Core& other) const {
    const Region* region = launch.region_of(begin);
    std::ostringstream text;
    text << core_text(core) << " " << kPipeNames[op.pipe] << " at " << site_text(op.site) << " ("
         << op.name << ") reaches what " << core_text(other) << " " << kPipeNames[old.pipe]
         << " stored at " << site_text(g_sites[old.site])
         << ", whose signal came without a fence before it (a barrier of the storing pipe, then "
            "dsb)";
    launch.find_at(key("no fence", region->name, old.site),
                   {"no fence", "GM " + region->name, begin - region->begin,
                    begin - region->begin + old.end - old.begin, text.str(), op_id()});
  }

  void gm(uint64_t begin, uint32_t bytes, bool write, bool atomic) const {
    for (uint64_t at = begin; at < begin + bytes;) {
      const uint64_t page = at >> kPageBits;
      const uint64_t stop = std::min((page + 1) << kPageBits, begin + bytes);
      gm_page(page, at - (page << kPageBits), stop - (page << kPageBits), write, atomic);
      at = stop;
    }
  }
};

}  // namespace

Shadow::Shadow(const std::array<uint8_t*, kLocalMems>& mem)
    : blocks{{nullptr, std::free},
             {nullptr, std::free},
             {nullptr, std::free},
             {nullptr, std::free},
             {nullptr, std::free}} {
  for (int i = 0; i < kLocalMems; ++i) {
    if (mem[i])
      blocks[i].reset(static_cast<Block*>(std::calloc(kMemBytes[i] / kBlock, sizeof(Block))));
  }
}

void reset_gm_shadow() {
  g_pages.clear();
  g_sites.clear();
  g_site_ids.clear();
}

void check_accesses(Launch& launch, Core& core, const Op& op, const Clock& clock,
                    const KnownPtr& known, uint32_t epoch) {
  const Check check{launch, core, op, clock, known, epoch, site_id(op.site)};
  // Reads first: an operation that updates in place reads what was there before.
  for (const bool write : {false, true}) {
    for (int i = 0; i < op.num_accesses; ++i) {
      const Access& a = op.access[i];
      if (a.write != write || a.bytes == 0) continue;
      for (uint32_t o = 0; o < a.outer; ++o) {
        for (uint32_t n = 0; n < a.inner; ++n) {
          uint64_t begin = a.base + o * a.outer_stride + n * a.inner_stride;
          if (a.mem == kGm) {
            check.gm(begin, a.bytes, write, a.atomic);
            continue;
          }
          const uint64_t end = begin + a.bytes;  // within the memory: issue() has checked
          while (begin < end) {
            const uint64_t index = begin / kBlock;
            const uint64_t stop = std::min<uint64_t>((index + 1) * kBlock, end);
            const uint64_t count = stop - begin;
            const uint32_t bits = count == 32 ? ~0u : (1u << count) - 1;
            check.local(a.mem, index, bits << (begin % kBlock), write);
            begin = stop;
          }
        }
      }
    }
  }
}

}  // namespace sim
