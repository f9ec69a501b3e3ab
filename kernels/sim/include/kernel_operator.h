// Ascend C's umbrella header, which raw-CCE sources include by habit. The builtins come from cce.h,
// which the simulator's toolchain includes ahead of every source.
#pragma once
