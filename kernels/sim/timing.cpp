#include "timing.h"

namespace sim {

std::string time_launch(const Launch&, const double*, bool) { return "{}"; }

}  // namespace sim
