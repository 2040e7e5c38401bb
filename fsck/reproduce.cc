// SPDX-License-Identifier: Apache-2.0
//
// F062: evicts some layers once more, from the source and the amax that the log says, into a scratch directory, and compares digests. What
// differs was not made by this program from this source: a device that computes wrongly, or another version.
#include <algorithm>
#include <bit>

#include "export/shard/evict.h"
#include "fsck/context.h"

namespace holdfast::fsck {
namespace {

// `count` of the evicted units that count, drawn at random.
std::vector<const Said<LayerRecord>*> Draw(const Log& log, uint32_t count) {
  std::vector<std::pair<Nonce, const Said<LayerRecord>*>> all;
  for (const auto& [unit, said] : log.layers) {
    const auto* counting = unit < log.plan()->units.size() ? log.Layer(unit) : nullptr;
    if (counting != nullptr) all.emplace_back(Nonce::Random(), counting);
  }
  std::sort(all.begin(), all.end());
  std::vector<const Said<LayerRecord>*> drawn;
  for (size_t i = 0; i < all.size() && i < count; ++i) drawn.push_back(all[i].second);
  return drawn;
}

void Compare(Context* c, const UnitPlan& unit, const LayerRecord& said, const LayerRecord& again) {
  for (const StoredTensor& t : again.tensors) {
    const auto it = std::find_if(said.tensors.begin(), said.tensors.end(), [&](const StoredTensor& s) { return s.name == t.name; });
    if (it != said.tensors.end() && it->digest == t.digest) continue;
    c->Error("F062", unit.label, "quantized once more from the source, " + t.name + " has other bytes",
             "look at `numerics` in jobctl status and at the memory of the node that evicted it; another version of holdfast may differ");
    return;
  }
}

}  // namespace

void Reproduce(Context* c) {
  if (c->options.reproduce == 0 || c->log.plan() == nullptr || !c->log.job) return;
  const auto source = SourceModel::Open(c->fs, c->log.job->source);
  if (!source.ok()) return c->Unreadable(c->log.job->source, source.error());
  const RunLayout scratch(JoinPath(c->options.scratch, "holdfast-reproduce-" + Nonce::Random().Hex()));
  for (const auto* said : Draw(c->log, c->options.reproduce)) {
    const UnitPlan& unit = c->log.plan()->units[said->value.unit];
    EvictOptions options;
    options.threads = c->threads();
    options.incarnation = Nonce::Random();
    std::vector<float> amax;
    for (const uint32_t bits : said->value.input_amax) amax.push_back(std::bit_cast<float>(bits));
    const Status made = c->fs.MakeDirs(scratch.TmpDir(options.incarnation));
    const auto again = made.ok() ? EvictUnit(c->fs, scratch, **source, *c->log.plan(), unit, amax, options) : Result<LayerRecord>(made.error());
    (void)c->fs.RemoveTree(scratch.root());
    if (!again.ok()) {
      c->Unreadable(unit.label, again.error());
    } else {
      Compare(c, unit, said->value, *again);
      ++c->report.reproduced;
    }
  }
}

}  // namespace holdfast::fsck
