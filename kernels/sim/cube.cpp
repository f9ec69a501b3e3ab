// Cube builtins: L1 to L0, mad, fixpipe.
#include "build_op.h"

namespace sim {}
