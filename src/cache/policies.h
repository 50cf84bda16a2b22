// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include "fovea/cache/kv_cache.h"

namespace fovea::cache {

/// The name of a kind in messages: "storage", "retention", "selection".
std::string_view name_of(PolicyKind kind);

/// The policy of this kind; the default one (f16, all, all) for an empty name. Throws Error with the nearest
/// name.
const PolicyEntry& policy_of(PolicyKind kind, std::string_view name);

}  // namespace fovea::cache
