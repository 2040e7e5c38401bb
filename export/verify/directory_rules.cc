// SPDX-License-Identifier: Apache-2.0
//
// V001-V005: the directory is exactly what SHA256SUMS says. The list is parsed more strictly than sha256sum(1) does (lower
// case, two spaces, one newline), so that no byte of it can change unnoticed either.
#include <algorithm>

#include "export/verify/output_view.h"
#include "export/verify/parallel.h"

namespace holdfast {
namespace {

constexpr char kManifest[] = "SHA256SUMS";
constexpr uint64_t kManifestMax = 64u << 20;
constexpr uint32_t kDepthMax = 8;

// Lists all files below `dir` as paths relative to the output directory.
Status Walk(OutputView* view, const std::string& prefix, uint32_t depth) {
  const std::string dir = prefix.empty() ? view->dir : JoinPath(view->dir, prefix);
  HOLDFAST_ASSIGN(const std::vector<std::string> entries, view->fs.List(dir));
  for (const std::string& name : entries) {
    const std::string path = prefix.empty() ? name : prefix + "/" + name;
    const Result<FileInfo> info = view->fs.Stat(JoinPath(view->dir, path));
    if (info.code() == ErrorCode::kNotFound) {
      view->sink.Add("V002", path, "the entry cannot be followed (a dangling link?); write the output again with jobctl");
      continue;
    }
    if (!info.ok()) return info.error();
    if (!info->is_directory) {
      if (path != kManifest) view->names[path] = info->size;
    } else if (depth < kDepthMax) {
      HOLDFAST_TRY(Walk(view, path, depth + 1));
    } else {
      view->sink.Add("V004", path, "directories are nested too deep to be an output; remove it");
    }
  }
  return OkStatus();
}

bool LooksPartial(const std::string& path) {
  const std::string name = BaseName(path);
  for (const char* part : {".holdfast-", "__shard_part_", ".nfs"}) {
    if (name.find(part) != std::string::npos) return true;
  }
  for (const char* end : {".tmp", ".part", ".partial", ".incomplete", ".swp", "~"}) {
    if (name.ends_with(end)) return true;
  }
  return false;
}

bool SafeName(const std::string& name) {
  if (name.empty() || name.front() == '/' || name == kManifest) return false;
  for (size_t at = 0; at <= name.size();) {
    const size_t end = std::min(name.find('/', at), name.size());
    const std::string_view part(name.data() + at, end - at);
    if (part.empty() || part == "." || part == "..") return false;
    at = end + 1;
  }
  return true;
}

struct Listed {
  std::string name;
  Digest digest;
};

// One line without its newline; false when it is not exactly what sha256sum(1) prints for a plain name.
bool ParseLine(std::string_view line, Listed* out) {
  if (line.size() < 67 || line.substr(64, 2) != "  ") return false;
  const std::string_view hex = line.substr(0, 64);
  if (std::any_of(hex.begin(), hex.end(), [](char c) { return c >= 'A' && c <= 'F'; })) return false;
  out->name = std::string(line.substr(66));
  return Digest::FromHex(hex, &out->digest) && SafeName(out->name);
}

std::vector<Listed> ParseManifest(std::string_view text, FindingSink* sink) {
  std::vector<Listed> listed;
  std::set<std::string> seen;
  size_t number = 0;
  for (size_t at = 0; at < text.size();) {
    ++number;
    const size_t end = text.find('\n', at);
    Listed one;
    const std::string where = std::string(kManifest) + " line " + std::to_string(number);
    if (end == std::string_view::npos) {
      sink->Add("V001", where, "the last line has no newline: the file was cut; write the output again with jobctl");
    }
    if (!ParseLine(text.substr(at, end == std::string_view::npos ? end : end - at), &one)) {
      sink->Add("V001", where, "expected 64 lower-case hex digits, two spaces and a relative file name");
    } else if (!seen.insert(one.name).second) {
      sink->Add("V001", where, "\"" + one.name + "\" is listed twice");
    } else {
      listed.push_back(std::move(one));
    }
    if (end == std::string_view::npos) break;
    at = end + 1;
  }
  return listed;
}

Status HashOne(OutputView* view, const Listed& want) {
  HOLDFAST_ASSIGN(const std::unique_ptr<ReadableFile> file, view->fs.Open(JoinPath(view->dir, want.name)));
  Sha256Hasher hasher;
  Bytes buffer(std::min(OutputView::kStreamBytes, std::max<uint64_t>(file->size(), 1)));
  for (uint64_t at = 0; at < file->size();) {
    const std::span<uint8_t> part(buffer.data(), std::min<uint64_t>(buffer.size(), file->size() - at));
    HOLDFAST_TRY(file->Read(at, part));
    hasher.Update(part);
    at += part.size();
    view->bytes_done += part.size();
  }
  const Digest got = hasher.Finish();
  if (got != want.digest) {
    view->sink.Add("V003", want.name, "SHA-256 is " + got.Hex() + ", SHA256SUMS says " + want.digest.Hex() +
                                          ": the file changed after it was written; restore it or write the output again");
  }
  return OkStatus();
}

}  // namespace

Status CheckDirectory(OutputView* view) {
  HOLDFAST_TRY(Walk(view, "", 0));
  for (const auto& [name, size] : view->names) {
    view->bytes_total += 2 * size;  // hashed here, read as tensors later
    if (LooksPartial(name)) {
      view->sink.Add("V005", name, "a temporary or partial name: remove the file if nothing is being written here");
    }
  }
  const Result<Bytes> text = view->fs.ReadFile(JoinPath(view->dir, kManifest), kManifestMax);
  if (text.code() == ErrorCode::kNotFound || text.code() == ErrorCode::kResourceExhausted) {
    view->sink.Add("V001", kManifest, "the file is missing or unreadable: nothing vouches for these bytes, the output is not finished");
    return OkStatus();
  }
  if (!text.ok()) return text.error();
  std::vector<Listed> listed = ParseManifest(AsText(*text), &view->sink);
  std::set<std::string> known;
  for (const Listed& one : listed) {
    known.insert(one.name);
    if (!view->names.contains(one.name)) {
      view->sink.Add("V002", one.name, "SHA256SUMS lists the file, the directory does not hold it");
    }
  }
  for (const auto& [name, size] : view->names) {
    if (!known.contains(name)) view->sink.Add("V004", name, "SHA256SUMS does not list the file: remove it, or write the output again");
  }
  std::erase_if(listed, [&](const Listed& one) { return !view->names.contains(one.name); });
  return ParallelFor(view->threads(), listed.size(), [&](size_t i) { return HashOne(view, listed[i]); }, [&] { view->Tick(); });
}

}  // namespace holdfast
