// SPDX-License-Identifier: Apache-2.0
//
// V080-V082: the output against the model it was made from. The weights are quantized again, set by set and piece by piece, and
// must give the stored bytes; everything else must be the source's bytes. This is the only check that sees damage which keeps
// all invariants of the format: swapped nibbles, shifted or swizzled block scales, a matrix in the place of another.
#include <algorithm>
#include <bit>
#include <cstring>

#include "export/nvfp4/nvfp4.h"
#include "export/verify/output_view.h"
#include "export/verify/parallel.h"

namespace holdfast {
namespace {

constexpr uint64_t kBlocksPerStep = OutputView::kStreamBytes / (kNvfp4Block * 4);  // so that an f32 piece is kStreamBytes

class SourceComparer {
 public:
  SourceComparer(OutputView* view, const SourceModel& source) : view_(*view), source_(source) {}

  Status Run() {
    const size_t sets = view_.sets.size();
    return ParallelFor(
        view_.threads(), sets + view_.plain.size(),
        [&](size_t i) { return i < sets ? CompareSet(view_.sets[i]) : ComparePlain(view_.plain[i - sets]); }, [&] { view_.Tick(); });
  }

 private:
  Status ReadSource(const SourceModel::Place& place, uint64_t offset, std::span<uint8_t> out) {
    view_.bytes_done += out.size();
    return place.file->file().Read(place.tensor->offset + offset, out);
  }

  // The source's matrix of a site; null, with a finding, when it is missing or of another shape or dtype.
  const SourceModel::Place* WeightOf(const SiteView& site) {
    const std::string name = site.module + ".weight";
    const SourceModel::Place* place = source_.Find(name);
    if (place == nullptr) {
      view_.sink.Add("V080", name, "the source " + source_.dir() + " has no such tensor: is it the right model?");
      return nullptr;
    }
    const DType t = place->tensor->dtype;
    const bool readable = t == DType::kBF16 || t == DType::kF16 || t == DType::kF32;
    if (readable && place->tensor->shape == std::vector<uint64_t>{site.rows, site.cols}) return place;
    view_.sink.Add("V080", name, std::string("the source holds ") + DTypeName(t) + " " + ShapeText(place->tensor->shape) +
                                     ", expected floats of [" + std::to_string(site.rows) + ", " + std::to_string(site.cols) + "]");
    return nullptr;
  }

  // max |w| of one source matrix; 0 with a finding when it holds NaN or Inf.
  Result<float> AmaxOf(const SourceModel::Place& place) {
    const TensorInfo& t = *place.tensor;
    Bytes buffer(std::min(OutputView::kStreamBytes, t.bytes));
    float amax = 0;
    for (uint64_t at = 0; at < t.bytes; at += OutputView::kStreamBytes) {
      const std::span<uint8_t> part(buffer.data(), std::min(OutputView::kStreamBytes, t.bytes - at));
      HOLDFAST_TRY(ReadSource(place, at, part));
      const Result<float> piece = WeightAmax(t.dtype, part, t.name);
      if (!piece.ok()) {
        view_.sink.Add("V080", t.name, "source: " + piece.error().message);
        return 0.0f;
      }
      amax = std::max(amax, *piece);
    }
    return amax;
  }

  Status CompareSet(const std::vector<size_t>& set) {
    float amax = 0;
    std::vector<const SourceModel::Place*> places;
    for (const size_t i : set) {
      const SiteView& site = view_.sites[i];
      places.push_back(site.readable ? WeightOf(site) : nullptr);
      if (places.back() == nullptr) return OkStatus();  // the set's amax is not known without every member
      HOLDFAST_ASSIGN(const float one, AmaxOf(*places.back()));
      amax = std::max(amax, one);
    }
    const float scale2 = GlobalScale(amax);
    for (size_t k = 0; k < set.size(); ++k) HOLDFAST_TRY(CompareSite(view_.sites[set[k]], *places[k], scale2));
    return OkStatus();
  }

  struct Difference {
    uint64_t count = 0, first = 0;
    void Add(ByteSpan a, ByteSpan b, uint64_t at) {
      if (std::memcmp(a.data(), b.data(), a.size()) == 0) return;
      for (size_t i = 0; i < a.size(); ++i) {
        if (a[i] != b[i] && count++ == 0) first = at + i;
      }
    }
  };

  void Report(const char* code, const TensorInfo& t, const Difference& d, const char* what) {
    if (d.count == 0) return;
    view_.sink.Add(code, t.name, std::to_string(d.count) + " of " + std::to_string(t.bytes) + " bytes differ from " + what +
                                     ", the first at offset " + std::to_string(d.first) + " of the tensor");
  }

  Status CompareSite(const SiteView& site, const SourceModel::Place& place, float scale2) {
    const float stored = GlobalScaleIn(view_.config.layout, scale2);
    if (std::bit_cast<uint32_t>(stored) != std::bit_cast<uint32_t>(site.scale2_value)) {
      view_.sink.Add("V081", site.scale2->name, "the value is " + FloatText(site.scale2_value) + ", the source's weights give " + FloatText(stored));
    }
    const uint64_t width = DTypeBytes(place.tensor->dtype) * kNvfp4Block;
    const uint64_t blocks = site.rows * (site.cols / kNvfp4Block);
    const uint64_t step = std::min(kBlocksPerStep, blocks);
    Bytes raw(step * width), want_codes(step * 8), want_scales(step), codes(step * 8), scales(step);
    Difference in_codes, in_scales;
    for (uint64_t at = 0; at < blocks; at += step) {
      const uint64_t n = std::min(step, blocks - at);
      const auto piece = [n](Bytes& b, uint64_t each) { return std::span(b).first(n * each); };
      HOLDFAST_TRY(ReadSource(place, at * width, piece(raw, width)));
      HOLDFAST_TRY(view_.Read(*site.weight, at * 8, piece(codes, 8)));
      HOLDFAST_TRY(view_.Read(*site.scale, at, piece(scales, 1)));
      // Blocks are independent of each other, so a piece may be quantized as one long row.
      QuantizeNvfp4(place.tensor->dtype, piece(raw, width), 1, n * kNvfp4Block, scale2, piece(want_codes, 8), piece(want_scales, 1));
      in_codes.Add(piece(codes, 8), piece(want_codes, 8), at * 8);
      in_scales.Add(piece(scales, 1), piece(want_scales, 1), at);
    }
    Report("V081", *site.weight, in_codes, "what the source's weights give");
    Report("V081", *site.scale, in_scales, "what the source's weights give");
    return OkStatus();
  }

  Status ComparePlain(const PlainView& plain) {
    const TensorInfo& t = *plain.tensor;
    const SourceModel::Place* place = source_.Find(t.name);
    if (place == nullptr) {
      if (!plain.tied_copy) view_.sink.Add("V080", t.name, "the source " + source_.dir() + " has no such tensor: is it the right model?");
      return OkStatus();
    }
    if (place->tensor->dtype != t.dtype || place->tensor->shape != t.shape) {
      view_.sink.Add("V082", t.name, std::string("stored as ") + DTypeName(t.dtype) + " " + ShapeText(t.shape) + ", the source has " +
                                         DTypeName(place->tensor->dtype) + " " + ShapeText(place->tensor->shape));
      return OkStatus();
    }
    Bytes a(std::min(OutputView::kStreamBytes, t.bytes)), b(a.size());
    Difference difference;
    for (uint64_t at = 0; at < t.bytes; at += OutputView::kStreamBytes) {
      const size_t n = std::min(OutputView::kStreamBytes, t.bytes - at);
      HOLDFAST_TRY(view_.Read(t, at, std::span(a).first(n)));
      HOLDFAST_TRY(ReadSource(*place, at, std::span(b).first(n)));
      difference.Add(ByteSpan(a).first(n), ByteSpan(b).first(n), at);
    }
    Report("V082", t, difference, "the source");
    return OkStatus();
  }

  OutputView& view_;
  const SourceModel& source_;
};

}  // namespace

uint64_t SourceBytesToRead(const OutputView& view) {
  if (view.options.source.empty()) return 0;
  uint64_t sum = 0;  // source matrices twice (amax, then bytes) at two bytes an element, everything stored once more
  for (const SiteView& site : view.sites) sum += site.readable ? site.rows * site.cols * 4 + site.weight->bytes + site.scale->bytes : 0;
  for (const PlainView& plain : view.plain) sum += 2 * plain.tensor->bytes;
  return sum;
}

Status CheckAgainstSource(OutputView* view) {
  const auto source = SourceModel::Open(view->fs, view->options.source);
  if (!source.ok()) return Annotate(source.error(), "the source to compare with");
  return SourceComparer(view, **source).Run();
}

}  // namespace holdfast
