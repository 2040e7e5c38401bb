// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/tape.h"

#include <algorithm>
#include <cerrno>

namespace holdfast::sim {
namespace {

class TapeWriter final : public WritableFile {
 public:
  TapeWriter(Tape& tape, std::unique_ptr<WritableFile> file) : tape_(tape), file_(std::move(file)) { ++tape_.open_files; }
  ~TapeWriter() override { --tape_.open_files; }
  Status Append(ByteSpan data) override {
    return Taped('a', [&] { return file_->Append(data); });
  }
  Status Sync() override {
    return Taped('s', [&] { return file_->Sync(); });
  }
  Status Close() override {
    return Taped('c', [&] { return file_->Close(); });
  }
  void DropCache() override {}

 private:
  template <class Live>
  Status Taped(char what, Live live) {
    if (tape_.replaying()) return tape_.Next(what).status;
    Status status = file_ == nullptr ? Status(ErrnoError(ESTALE, "writing what a clone had open")) : live();
    tape_.Add({.what = what, .status = status});
    return status;
  }
  Tape& tape_;
  std::unique_ptr<WritableFile> file_;   // null: opened before the clone was made
};

class TapeReader final : public ReadableFile {
 public:
  TapeReader(Tape& tape, std::unique_ptr<ReadableFile> file, uint64_t size) : tape_(tape), file_(std::move(file)), size_(size) {}
  uint64_t size() const override { return size_; }
  Status Read(uint64_t offset, std::span<uint8_t> out) const override {
    if (tape_.replaying()) {
      Tape::Entry e = tape_.Next('r');
      if (e.status.ok() && e.bytes.size() == out.size()) std::copy(e.bytes.begin(), e.bytes.end(), out.begin());
      return e.status;
    }
    if (file_ == nullptr) return ErrnoError(ESTALE, "reading what a clone had open");
    Status status = file_->Read(offset, out);
    tape_.Add({.what = 'r', .status = status, .bytes = Bytes(out.begin(), out.end())});
    return status;
  }
  void DropCache(uint64_t, uint64_t) const override {}

 private:
  Tape& tape_;
  std::unique_ptr<ReadableFile> file_;   // null: as above
  uint64_t size_;
};

class TapeFs final : public FileSystem {
 public:
  TapeFs(FileSystem& fs, Tape& tape) : fs_(fs), tape_(tape) {}
  Result<std::unique_ptr<WritableFile>> Create(const std::string& path, uint32_t mode) override {
    if (tape_.replaying()) {
      const Status said = tape_.Next('C').status;
      if (!said.ok()) return said.error();
      return std::unique_ptr<WritableFile>(std::make_unique<TapeWriter>(tape_, nullptr));
    }
    auto file = fs_.Create(path, mode);
    tape_.Add({.what = 'C', .status = file.ok() ? OkStatus() : Status(file.error())});
    if (!file.ok()) return file.error();
    return std::unique_ptr<WritableFile>(std::make_unique<TapeWriter>(tape_, std::move(*file)));
  }
  Result<std::unique_ptr<ReadableFile>> Open(const std::string& path) override {
    if (tape_.replaying()) {
      const Tape::Entry e = tape_.Next('O');
      if (!e.status.ok()) return e.status.error();
      return std::unique_ptr<ReadableFile>(std::make_unique<TapeReader>(tape_, nullptr, e.number));
    }
    auto file = fs_.Open(path);
    tape_.Add({.what = 'O', .status = file.ok() ? OkStatus() : Status(file.error()), .number = file.ok() ? (*file)->size() : 0});
    if (!file.ok()) return file.error();
    const uint64_t size = (*file)->size();
    return std::unique_ptr<ReadableFile>(std::make_unique<TapeReader>(tape_, std::move(*file), size));
  }
  Status Link(const std::string& from, const std::string& to) override {
    return Taped('L', [&] { return fs_.Link(from, to); });
  }
  Status RenameExclusive(const std::string& from, const std::string& to) override {
    return Taped('R', [&] { return fs_.RenameExclusive(from, to); });
  }
  Status Replace(const std::string& from, const std::string& to) override {
    return Taped('P', [&] { return fs_.Replace(from, to); });
  }
  Status Unlink(const std::string& path) override {
    return Taped('U', [&] { return fs_.Unlink(path); });
  }
  Status RemoveTree(const std::string& path) override {
    return Taped('T', [&] { return fs_.RemoveTree(path); });
  }
  Status SyncDir(const std::string& path) override {
    return Taped('D', [&] { return fs_.SyncDir(path); });
  }
  Status MakeDirs(const std::string& path) override {
    return Taped('M', [&] { return fs_.MakeDirs(path); });
  }
  Result<std::vector<std::string>> List(const std::string& path) override {
    if (tape_.replaying()) {
      Tape::Entry e = tape_.Next('l');
      if (!e.status.ok()) return e.status.error();
      return std::move(e.names);
    }
    auto names = fs_.List(path);
    tape_.Add({.what = 'l', .status = names.ok() ? OkStatus() : Status(names.error()), .names = names.ok() ? *names : std::vector<std::string>{}});
    return names;
  }
  Result<FileInfo> Stat(const std::string& path) override {
    if (tape_.replaying()) {
      const Tape::Entry e = tape_.Next('S');
      if (!e.status.ok()) return e.status.error();
      return e.info;
    }
    auto info = fs_.Stat(path);
    tape_.Add({.what = 'S', .status = info.ok() ? OkStatus() : Status(info.error()), .info = info.ok() ? *info : FileInfo{}});
    return info;
  }
  Result<SpaceInfo> Space(const std::string& path) override { return SpaceInfo{UINT64_MAX / 2, UINT64_MAX / 2}; }

 private:
  template <class Live>
  Status Taped(char what, Live live) {
    if (tape_.replaying()) return tape_.Next(what).status;
    Status status = live();
    tape_.Add({.what = what, .status = status});
    return status;
  }
  FileSystem& fs_;
  Tape& tape_;
};

}  // namespace

Tape::Entry Tape::Next(char what) {
  Entry e = entries_[at_++];
  const bool same = e.what == what;
  if (!same) astray_ = true, limit_ = at_;
  if (at_ == limit_ && on_live) on_live();
  if (same) return e;
  return {.what = what, .status = Internal("the clone went astray")};
}

uint64_t Tape::Number(char what, uint64_t now) {
  if (replaying()) return Next(what).number;
  Add({.what = what, .number = now});
  return now;
}

std::unique_ptr<Tape> Tape::Copy() const {
  HOLDFAST_CHECK(open_files == 0);
  auto copy = std::make_unique<Tape>();
  copy->entries_ = entries_;
  copy->limit_ = entries_.size();
  return copy;
}

std::unique_ptr<FileSystem> MakeTapeFs(FileSystem& fs, Tape& tape) { return std::make_unique<TapeFs>(fs, tape); }

}  // namespace holdfast::sim
