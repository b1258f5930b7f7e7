// Entry points of the fused operations: C functions, so that no build depends on the version of Python or PyTorch.
#include "codes.h"
#include "mix.h"
#include "shrink.h"
#include "site.h"

namespace {

template <typename Run> int64_t guarded(const radargate::Call& call, Run run) {
  if (!radargate::indices_fit(call)) return radargate::BAD_INDEX;
  try {
    run();
  } catch (const std::bad_alloc&) {
    return radargate::NO_MEMORY;
  }
  return radargate::DONE;
}

}  // namespace

extern "C" {

int64_t radargate_rotation_codes(const radargate::Call* call) {
  return guarded(*call, [&] {
    call->wide ? radargate::rotation_codes<double>(*call) : radargate::rotation_codes<float>(*call);
  });
}

int64_t radargate_mix(const radargate::Call* call) {
  return guarded(*call, [&] { call->wide ? radargate::mix<double>(*call) : radargate::mix<float>(*call); });
}

int64_t radargate_shrink(const radargate::Call* call) {
  return guarded(*call, [&] { call->wide ? radargate::shrink<double>(*call) : radargate::shrink<float>(*call); });
}

int64_t radargate_site(const radargate::Site* site) {
  try {
    site->wide ? radargate::SiteWork<double>(*site).run() : radargate::SiteWork<float>(*site).run();
  } catch (const std::bad_alloc&) {
    return radargate::NO_MEMORY;
  }
  return radargate::DONE;
}

}  // extern "C"
